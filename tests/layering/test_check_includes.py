"""The checker must find what it is there to find."""

import unittest

from check_includes import wrong_includes


def wrong(path, *lines):
    return list(wrong_includes(path, "\n".join(lines)))


class Checker(unittest.TestCase):
    def test_a_layer_may_use_itself_and_those_below(self):
        self.assertEqual(wrong("src/model/a.cpp", '#include "model/a.h"', '#include "image/b.h"',
                               "#include <vector>", '#include "glimpse/error.h"'), [])

    def test_a_layer_above_is_refused(self):
        self.assertEqual(len(wrong("src/model/a.cpp", '#include "server/http.h"')), 1)
        self.assertEqual(len(wrong("src/base/a.h", '#include "tensor/tensor.h"')), 1)
        self.assertEqual(len(wrong("src/text/a.h", '#include "image/decode.h"')), 1)

    def test_server_and_apps_see_the_public_headers(self):
        self.assertEqual(wrong("src/server/a.cpp", '#include "glimpse/engine.h"'), [])
        self.assertEqual(len(wrong("src/server/a.cpp", '#include "tensor/tensor.h"')), 1)
        self.assertEqual(wrong("apps/a.cpp", '#include "command.h"'), [])
        self.assertEqual(len(wrong("apps/a.cpp", '#include "runtime/engine.h"')), 1)

    def test_concrete_backends_are_named_in_one_place(self):
        line = '#include "cuda/cuda_backend.h"'
        self.assertEqual(wrong("src/backend/create.cpp", line), [])
        self.assertEqual(len(wrong("src/backend/blocks.cpp", line)), 1)
        self.assertEqual(len(wrong("src/runtime/engine.cpp", line)), 1)

    def test_cuda_headers_stay_in_src_cuda(self):
        for header in ("cuda.h", "cuda_runtime.h", "cuda_fp8.h", "cuda/std/array", "mma.h"):
            self.assertEqual(wrong("src/cuda/a.cu", f"#include <{header}>"), [])
            self.assertEqual(len(wrong("src/runtime/a.cpp", f"#include <{header}>")), 1, header)

    def test_json_enters_by_one_header(self):
        line = "#include <nlohmann/json.hpp>"
        self.assertEqual(wrong("src/base/json.h", line), [])
        self.assertEqual(len(wrong("src/base/sha256.cpp", line)), 1)
        self.assertEqual(len(wrong("apps/caption.cpp", line)), 1)

    def test_public_headers_use_the_standard_library_only(self):
        self.assertEqual(wrong("include/glimpse/a.h", "#include <string>"), [])
        self.assertEqual(len(wrong("include/glimpse/a.h", "#include <fmt/format.h>")), 1)
        self.assertEqual(len(wrong("include/glimpse/a.h", '#include "base/check.h"')), 1)

    def test_an_include_in_a_comment_is_no_include(self):
        self.assertEqual(wrong("src/base/a.h", '// #include "server/http.h"',
                               '/* #include "server/http.h" */'), [])

    def test_an_unknown_layer_is_reported(self):
        self.assertEqual(len(wrong("src/plugins/a.cpp", "#include <vector>")), 1)


if __name__ == "__main__":
    unittest.main()
