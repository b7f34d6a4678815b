"""tools/check_kernels on ptxas reports of each kind."""

import importlib.machinery
import importlib.util
import pathlib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load(name, path):
    """A module from a file without a .py suffix."""
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(spec)
    import sys
    sys.modules[name] = module
    loader.exec_module(module)
    return module


check_kernels = load("check_kernels", ROOT / "tools" / "check_kernels")

SYMBOL = "_ZN7glimpse4cuda12norm_per_rowIfEEvPKT_S3_iiPS2_"
LOG = """\
[3/9] Building CUDA object norm.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{symbol}' for 'sm_120'
ptxas info    : Function properties for {symbol}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem, 392 bytes cmem[0]
"""
SOURCE = """
// One warp per row.{comment}
template <typename T>
__global__ void __launch_bounds__(kThreads(4), 2) norm_per_row(const T* x, int rows) {{}}
"""


def log(stores=0, loads=0, shared=128):
    return LOG.format(symbol=SYMBOL, stack=stores, stores=stores, loads=loads, registers=64,
                      shared=shared)


def problems(text, comment=""):
    kernels = check_kernels.kernels_of(SOURCE.format(comment=comment))
    return list(check_kernels.problems(check_kernels.parse(text), kernels))


class CheckKernels(unittest.TestCase):
    def test_a_report_is_read(self):
        (report,) = check_kernels.parse(log(stores=8, loads=4))
        self.assertEqual((report.symbol, report.architecture), (SYMBOL, "sm_120"))
        self.assertEqual((report.registers, report.shared_bytes, report.spill_bytes), (64, 128, 12))

    def test_a_kernel_within_its_limits_passes(self):
        self.assertEqual(problems(log(shared=99 * 1024)), [])

    def test_a_byte_too_much_of_shared_memory_fails(self):
        (problem,) = problems(log(shared=99 * 1024 + 1))
        self.assertIn("norm_per_row (sm_120", problem)

    def test_a_spill_fails_unless_a_comment_explains_it(self):
        self.assertEqual(len(problems(log(stores=16))), 1)
        self.assertEqual(len(problems(log(loads=16))), 1)
        self.assertEqual(problems(log(stores=16), "\n// spill: cold path, 2 registers"), [])

    def test_a_comment_without_a_reason_explains_nothing(self):
        self.assertEqual(len(problems(log(stores=16), "\n// spill:")), 1)

    def test_kernels_are_found_in_their_usual_forms(self):
        text = """__global__ void plain(int n) {}
        template <int N>
        __global__ __launch_bounds__(128) void bounded(Parameters parameters) {}
        extern "C" __global__ void
        on_the_next_line(float* x) {}"""
        self.assertEqual(set(check_kernels.kernels_of(text)),
                         {"plain", "bounded", "on_the_next_line"})


if __name__ == "__main__":
    unittest.main()
