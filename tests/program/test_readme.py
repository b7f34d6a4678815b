"""The README's examples do what it shows: every `console` block is run and compared."""

import json
import os
import re
import shutil
import subprocess
import unittest

from program import PROGRAM, SOURCE
from test_serve import start

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

    def run_beside_a_server(self, document):
        """Lines that the shell examples of a document print, which begin by starting a server."""
        blocks = re.findall(r"^```sh\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
        examples = "".join(b for b in blocks if "127.0.0.1:8000" in b)
        serve, commands = examples.split("\n", 1)
        self.assertEqual(serve, "./glimpse serve --port 8000 &")
        process, port = start()
        try:
            script = commands.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            script = script.replace("./glimpse ", '"$GLIMPSE_PROGRAM" ')
            # The answers of the API have no line end.
            script = "curl() { command curl \"$@\"; echo; }\n" + script
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script], cwd=SOURCE, capture_output=True,
                text=True, timeout=120, check=False, env=dict(os.environ, GLIMPSE_PROGRAM=PROGRAM))
            self.assertEqual(result.returncode, 0, result.stderr)
            return [line for line in result.stdout.splitlines() if line]
        finally:
            process.terminate()
            process.wait(60)
            process.stderr.close()

    @unittest.skipUnless(shutil.which("curl"), "curl is not installed")
    def test_the_server_answers_the_curl_examples(self):
        models, chat, answer = self.run_beside_a_server(README)
        self.assertEqual(json.loads(models)["object"], "list")
        for text in (json.loads(chat)["choices"][0]["message"]["content"], answer):
            self.assertIn("police car", text)

    @unittest.skipUnless(shutil.which("curl"), "curl is not installed")
    def test_the_server_answers_the_examples_of_its_document(self):
        document = (SOURCE / "docs" / "api.md").read_text(encoding="utf-8")
        chat, *events, plate, answer = self.run_beside_a_server(document)
        for text in (json.loads(chat)["choices"][0]["message"]["content"], answer):
            self.assertIn("police car", text)
        self.assertEqual(events[-1], "data: [DONE]")
        plate = json.loads(json.loads(plate)["choices"][0]["message"]["content"])["plate"]
        self.assertRegex(plate, r"\A[A-Z]{1,3}-[A-Z]{1,2} [0-9]{1,4}\Z")

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
