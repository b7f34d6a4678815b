"""The short form of tools/load_test: many clients, bystanders, and the end under load."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

from program import SOURCE
from test_serve import start


class Load(unittest.TestCase):
    def load(self, port, *flags):
        with tempfile.TemporaryDirectory() as folder:
            report = pathlib.Path(folder) / "report.json"
            result = subprocess.run(
                [sys.executable, SOURCE / "tools" / "load_test" / "load_test",
                 "--url", f"http://127.0.0.1:{port}", "--json", report, *flags],
                capture_output=True, text=True, timeout=300, check=False)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            return json.loads(report.read_text())

    def test_every_answer_under_load_is_the_golden_one_and_sigterm_loses_none(self):
        server, port = start("--max-sequences", "8")
        with server.stderr:
            report = self.load(port, "--clients", "12", "--seconds", "10", "--idle", "60",
                               "--slow", "2", "--pid", str(server.pid), "--drain")
            self.assertGreater(report["answered"], 12)
            self.assertEqual((report["wrong"], report["failed"], report["bystanders_lost"]),
                             (0, 0, 0))
            self.assertEqual(server.wait(120), 0)


if __name__ == "__main__":
    unittest.main()
