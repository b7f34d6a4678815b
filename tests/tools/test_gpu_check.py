"""tools/gpu_check: how it judges what it measured."""

import base64
import importlib.machinery
import importlib.util
import json
import pathlib
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOADER = importlib.machinery.SourceFileLoader("gpu_check",
                                              str(ROOT / "tools" / "gpu_check" / "gpu_check"))
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", LOADER))
LOADER.exec_module(gpu_check)


def answers(equal, gaps):
    return {"answers": 80, "equal": equal,
            "differences": [{"smallest_top2_logit_gap": gap} for gap in gaps]}


class Answers(unittest.TestCase):
    def test_all_equal_passes(self):
        self.assertTrue(gpu_check.judge_answers(answers(80, []))["passed"])

    def test_close_calls_may_differ(self):
        self.assertTrue(gpu_check.judge_answers(answers(78, [0.1, 0.29]))["passed"])

    def test_a_clear_answer_must_not_differ(self):
        self.assertFalse(gpu_check.judge_answers(answers(79, [0.3]))["passed"])

    def test_too_many_differences_fail(self):
        self.assertFalse(gpu_check.judge_answers(answers(71, [0.1] * 9))["passed"])


class Plan(unittest.TestCase):
    @staticmethod
    def holds(plan, peak):
        items = [{"name": "weights", "bytes": plan - 10}, {"name": "kv cache", "bytes": 10}]
        return gpu_check.judge_plan({"memory": items, "peak_device_bytes": peak})["plan_holds"]

    def test_the_peak_may_be_the_plan_or_a_little_less(self):
        self.assertTrue(self.holds(1000, 1000))
        self.assertTrue(self.holds(1030, 1000))

    def test_the_peak_must_not_be_above_the_plan(self):
        self.assertFalse(self.holds(1000, 1001))

    def test_the_plan_must_not_be_far_above_the_peak(self):
        self.assertFalse(self.holds(1031, 1000))


class Pictures(unittest.TestCase):
    def test_a_noise_picture_is_a_whole_bmp(self):
        file = base64.b64decode(gpu_check.picture_url(1, 64, 32).split(",")[1])
        self.assertEqual(file[:2], b"BM")
        self.assertEqual(int.from_bytes(file[2:6], "little"), len(file))
        self.assertEqual(len(file), 54 + 64 * 32 * 3)


class Tests(unittest.TestCase):
    def test_failures_and_skips_are_counted_from_the_report(self):
        cases = [{"classname": "A", "name": "passes", "result": "COMPLETED"},
                 {"classname": "A", "name": "skips", "result": "SKIPPED"},
                 {"classname": "B", "name": "fails", "result": "COMPLETED",
                  "failures": [{"failure": "no"}]}]
        report = json.dumps({"testsuites": [{"testsuite": cases}]})
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "some_tests"
            program.write_text("#!/bin/sh\n"
                               "for a in \"$@\"; do case $a in --gtest_output=json:*)\n"
                               f"  echo '{report}' > \"${{a#--gtest_output=json:}}\";; esac; done\n"
                               "exit 1\n")
            program.chmod(0o755)
            result = gpu_check.run_tests(program, 10)
        self.assertEqual(result, {"exit": 1, "run": 3, "skipped": 1, "failed": ["B.fails"]})


if __name__ == "__main__":
    unittest.main()
