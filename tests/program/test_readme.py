"""The README's examples do what it shows: every `console` block is run and compared."""

import os
import re
import subprocess
import unittest

from program import PROGRAM, SOURCE

README = (SOURCE / "README.md").read_text(encoding="utf-8")


def examples():
    """(command, expected standard output) of each `$` line of the console blocks."""
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


class Readme(unittest.TestCase):
    def test_examples_print_what_is_shown(self):
        tried = 0
        for command, expected in examples():
            with self.subTest(command):
                self.assertTrue(command.startswith("./glimpse "), command)
                result = subprocess.run(
                    ["bash", "-c", '"$GLIMPSE_PROGRAM" ' + command.removeprefix("./glimpse ")],
                    cwd=SOURCE, capture_output=True, text=True, timeout=120, check=False,
                    env=dict(os.environ, GLIMPSE_PROGRAM=PROGRAM))
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(result.stdout, expected)
                tried += 1
        self.assertGreater(tried, 0)

    def test_every_command_of_the_table_exists(self):
        commands = re.findall(r"^\| `(\w+)[^`]*` \|", README, re.MULTILINE)
        self.assertIn("caption", commands)
        for command in commands:
            result = subprocess.run([PROGRAM, command, "--help"], capture_output=True, timeout=60,
                                    check=False)
            self.assertEqual(result.returncode, 0, command)

    def test_links_lead_somewhere(self):
        for target in re.findall(r"\]\(([^)#]+)\)", README):
            if not target.startswith("http"):
                self.assertTrue((SOURCE / target).exists(), target)


if __name__ == "__main__":
    unittest.main()
