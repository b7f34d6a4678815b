"""The installed library: find_package(glimpse), the example, the bundled model."""

import os
import pathlib
import subprocess
import tempfile
import unittest

from program import PICTURES, SOURCE, golden_answer


class Library(unittest.TestCase):
    def test_the_example_builds_against_the_installation_and_captions(self):
        cmake = os.environ["CMAKE_COMMAND"]
        with tempfile.TemporaryDirectory() as folder:
            prefix = pathlib.Path(folder) / "prefix"
            subprocess.run([cmake, "--install", os.environ["GLIMPSE_BINARY_DIR"], "--prefix", prefix],
                           check=True, capture_output=True)
            example = prefix / "share" / "glimpse" / "examples"
            build = pathlib.Path(folder) / "build"
            for command in ([cmake, "-S", example, "-B", build, "-G", "Ninja",
                             f"-DCMAKE_PREFIX_PATH={prefix}",
                             f"-DCMAKE_CXX_COMPILER={os.environ['CMAKE_CXX_COMPILER']}"],
                            [cmake, "--build", build]):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            # The source tree's model must not be what is found.
            done = subprocess.run([build / "caption_image", PICTURES / "05.png"], text=True,
                                  capture_output=True, check=False, cwd=folder)
            self.assertEqual(done.returncode, 0, done.stderr)
            expected = golden_answer("05.png", "Describe this image in detail.")
            self.assertEqual(done.stdout, f"{PICTURES / '05.png'}: {expected}\n")

    def test_public_headers_need_only_the_standard_library(self):
        for header in sorted((SOURCE / "include" / "glimpse").glob("*.h")):
            source = f'#include "glimpse/{header.name}"\n'
            done = subprocess.run([os.environ["CMAKE_CXX_COMPILER"], "-std=c++20", "-fsyntax-only",
                                   f"-I{SOURCE / 'include'}", "-x", "c++", "-"], input=source,
                                  text=True, capture_output=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            for line in header.read_text().splitlines():
                if line.startswith("#include"):
                    self.assertRegex(line, r'^#include (<[a-z_]+>|"glimpse/[a-z_]+\.h")$')


if __name__ == "__main__":
    unittest.main()
