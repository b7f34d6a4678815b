"""glimpse caption: what stands on standard output, and what does not."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import unittest

from program import PICTURES, PROGRAM, golden_answer, png, run

DETAIL = "Describe this image in detail."


class Caption(unittest.TestCase):
    def test_one_picture_prints_its_caption_and_nothing_else(self):
        result = run("caption", PICTURES / "05.png", "--device", "cpu")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, golden_answer("05.png", DETAIL) + "\n")
        self.assertEqual(result.stderr, "")

    def test_the_prompt_can_be_given(self):
        result = run("caption", PICTURES / "00.png", "--prompt", "Read the text in this image.")
        self.assertEqual(result.stdout, golden_answer("00.png", "Read the text in this image.") + "\n")

    def test_several_files_are_lines_in_the_order_given(self):
        names = ["03.webp", "01.jpg", "00.png"]
        result = run("caption", *[PICTURES / name for name in names])
        expected = "".join(f"{PICTURES / n}\t{golden_answer(n, DETAIL)}\n" for n in names)
        self.assertEqual(result.stdout, expected)
        self.assertEqual(result.returncode, 0)

    def test_line_breaks_in_an_answer_stay_on_its_line(self):
        prompt = "Locate every object in this image and output the bbox coordinates in JSON format."
        names = ["00.png", "02.png"]
        result = run("caption", *[PICTURES / n for n in names], "--prompt", prompt)
        lines = result.stdout.splitlines()
        self.assertEqual(len(lines), 2)
        text = lines[0].split("\t", 1)[1]
        unescaped = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\\\", "\\")
        self.assertTrue(unescaped.startswith("```json\n["), text)

    def test_a_directory_stands_for_its_pictures_by_name(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("01.jpg", "00.png"):
                shutil.copy(PICTURES / name, folder)
            (pathlib.Path(folder) / "notes.txt").write_text("not a picture")
            result = run("caption", folder)
        self.assertEqual([line.split("\t")[1] for line in result.stdout.splitlines()],
                         [golden_answer("00.png", DETAIL), golden_answer("01.jpg", DETAIL)])

    def test_a_picture_comes_through_standard_input(self):
        result = run("caption", "-", stdin=(PICTURES / "06.jpg").read_bytes())
        self.assertEqual(result.stdout.decode(), golden_answer("06.jpg", DETAIL) + "\n")

    def test_json_holds_answer_tokens_and_stats(self):
        result = run("caption", PICTURES / "05.png", "--json", "--logprobs", "3")
        value = json.loads(result.stdout)
        self.assertEqual(value["text"], golden_answer("05.png", DETAIL))
        self.assertEqual(value["finish_reason"], "stop")
        self.assertEqual(len(value["logprobs"]), value["stats"]["completion_tokens"])
        self.assertEqual(len(value["logprobs"][0]["top"]), 3)
        self.assertEqual(value["stats"]["pictures"][0]["grid_thw"][0], 1)
        self.assertEqual(value["stats"]["arithmetic"], "exact")
        self.assertGreater(value["stats"]["peak_resident_bytes"], 0)

    def test_stats_name_every_stage_on_standard_error(self):
        result = run("caption", PICTURES / "05.png", "--stats")
        for word in ("load", "decode", "resize", "vision", "prefill", "memory", "exact"):
            self.assertIn(word, result.stderr)
        self.assertEqual(result.stdout, golden_answer("05.png", DETAIL) + "\n")

    def test_max_tokens_cuts_the_answer(self):
        result = run("caption", PICTURES / "05.png", "--max-tokens", "4", "--json")
        value = json.loads(result.stdout)
        self.assertEqual(value["finish_reason"], "length")
        self.assertEqual(value["stats"]["completion_tokens"], 4)

    def test_a_stop_string_ends_the_answer_before_it(self):
        whole = golden_answer("00.png", DETAIL)
        result = run("caption", PICTURES / "00.png", "--stop", "hot face")
        self.assertEqual(result.stdout, whole[:whole.index("hot face")] + "\n")

    def test_equal_seeds_give_equal_answers(self):
        flags = ("caption", PICTURES / "00.png", "--temperature", "3", "--max-tokens", "24")
        first = run(*flags, "--seed", "7").stdout
        self.assertEqual(first, run(*flags, "--seed", "7").stdout)
        self.assertNotEqual(first, run(*flags, "--seed", "8").stdout)

    def test_pixel_limits_change_the_grid(self):
        result = run("caption", PICTURES / "05.png", "--json", "--max-pixels", "90000")
        small = json.loads(result.stdout)["stats"]["pictures"][0]
        self.assertLessEqual(small["resized_width"] * small["resized_height"], 90000)

    def test_the_maximum_area_wins_over_rounding_up_to_the_minimum(self):
        # 300 x 200 scaled up to 65536 pixels is 320 x 224 after rounding: more than the maximum.
        result = run("caption", PICTURES / "05.png", "--max-pixels", "65536", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        picture = json.loads(result.stdout)["stats"]["pictures"][0]
        self.assertLessEqual(picture["resized_width"] * picture["resized_height"], 65536)

    def test_a_bad_file_among_good_ones_loses_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            bad = pathlib.Path(folder) / "bad.png"
            bad.write_bytes(b"not a picture at all")
            result = run("caption", PICTURES / "00.png", bad, PICTURES / "01.jpg")
        self.assertEqual(len(result.stdout.splitlines()), 2)
        self.assertIn("bad.png", result.stderr)
        self.assertEqual(result.returncode, 4)

    def test_a_bad_directory_or_name_among_good_files_loses_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            result = run("caption", PICTURES / "00.png", folder, "", PICTURES / "01.jpg", "--json")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual(["error" in line for line in lines], [False, True, True, False])
        self.assertEqual(result.returncode, 3)

    def test_a_name_of_any_bytes_stays_on_its_line(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "a\tb\nc.png"
            shutil.copy(PICTURES / "00.png", path)
            result = run("caption", path, PICTURES / "01.jpg", "--max-tokens", "2")
            other = pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/x\xff.png"))
            shutil.copy(PICTURES / "00.png", other)
            raw = subprocess.run([PROGRAM, "caption", other, "--max-tokens", "2", "--json"],
                                 capture_output=True, check=False, timeout=120)
        self.assertEqual([line.count("\t") for line in result.stdout.splitlines()], [1, 1])
        self.assertTrue(result.stdout.startswith(f"{folder}/a\\tb\\nc.png\t"), result.stdout)
        self.assertTrue(json.loads(raw.stdout)["path"].endswith("/x\ufffd.png"))

    def test_a_picture_comes_through_a_named_pipe(self):
        with tempfile.TemporaryDirectory() as folder:
            pipe = pathlib.Path(folder) / "pipe"
            os.mkfifo(pipe)
            writer = threading.Thread(
                target=pipe.write_bytes, args=((PICTURES / "06.jpg").read_bytes(),))
            writer.start()
            result = run("caption", pipe)
            writer.join()
        self.assertEqual(result.stdout, golden_answer("06.jpg", DETAIL) + "\n")

    def test_a_flat_picture_of_one_pixel_works(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "one.png"
            path.write_bytes(png(1, 1))
            result = run("caption", path)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_fast_arithmetic_is_named_in_the_stats(self):
        result = run("caption", PICTURES / "05.png", "--json", "--arithmetic", "fast")
        self.assertEqual(json.loads(result.stdout)["stats"]["arithmetic"], "fast")


if __name__ == "__main__":
    unittest.main()
