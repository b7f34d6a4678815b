"""`glimpse doctor` on whatever machine runs the tests, with or without a GPU."""

import json
import unittest

from program import MODEL, run


class Doctor(unittest.TestCase):
    def test_it_tells_of_the_machine_and_agrees_with_itself(self):
        result = run("doctor", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(report["model_folder"], str(MODEL))
        self.assertGreater(report["disk_mb_per_second"], 0)
        self.assertEqual(report["gpu"] is None, report["why_no_gpu"] != "")
        for finding in report["findings"]:
            self.assertTrue(finding["problem"])
        if report["gpu"] is None:
            self.assertTrue(report["findings"], "a machine without a GPU has something to say")
        else:
            self.assertRegex(report["gpu"]["compute_capability"], r"^\d+\.\d+$")
            self.assertGreater(report["gpu"]["upload_gb_per_second"], 0)

    def test_the_text_names_everything(self):
        text = run("doctor").stdout
        for words in ("system", "NVIDIA card", "driver", "this build", "self-tests", "its disk"):
            self.assertIn(words, text)

    def test_a_model_that_is_not_there_is_told(self):
        result = run("doctor", "--model", MODEL / "nothing")
        self.assertEqual(result.returncode, 3)
        self.assertEqual(result.stdout, "")


if __name__ == "__main__":
    unittest.main()
