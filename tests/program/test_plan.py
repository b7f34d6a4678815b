"""`glimpse plan`: from configuration and headers alone, and every figure of docs/memory.md."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

from program import MODEL, PROGRAM, SOURCE, run

KEYS = ["verdict", "items", "total_bytes", "free_bytes", "largest_picture", "longest_context",
        "most_sequences", "advice"]
MIB = 1 << 20
DOCUMENTATION = (SOURCE / "docs" / "memory.md").read_text(encoding="utf-8")


class Plan(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        for shape in ("2b", "4b"):
            for weights in ("fp8", "bf16"):
                subprocess.run([PROGRAM, "synth", cls.folder / f"{shape}-{weights}", "--shape",
                                shape, "--format", weights, "--sparse", "--quiet"], check=True,
                               timeout=60)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def plan(self, model, *arguments):
        result = run("plan", self.folder / model, "--gpu", "8GiB", "--json", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def item(self, plan, name):
        return sum(item["bytes"] for item in plan["items"] if item["name"] == name)

    def test_the_keys_are_those_promised(self):
        plan = self.plan("2b-fp8")
        self.assertEqual(list(plan), KEYS)
        for item in plan["items"]:
            self.assertEqual(sorted(item), ["bytes", "name"])
        self.assertEqual(plan["total_bytes"], sum(item["bytes"] for item in plan["items"]))

    def test_a_card_of_8_gib_has_7372_mib_free(self):
        self.assertEqual(self.plan("2b-fp8")["free_bytes"], 7372 * MIB)

    def test_what_was_promised_for_8_gib_fits(self):
        for model, arguments in (("2b-fp8", []), ("2b-bf16", []), ("4b-fp8", []),
                                 ("4b-bf16", ["--quantize-fp8"])):
            with self.subTest(model):
                plan = self.plan(model, *arguments)
                self.assertIn(plan["verdict"], ("FITS", "TIGHT"))
                self.assertLessEqual(plan["total_bytes"], plan["free_bytes"])

    def test_activations_in_fp8_are_planned_and_need_fp8_weights(self):
        # Small pictures, so that the language model's activations are the larger part.
        options = ["--max-pixels", "65536", "--arithmetic"]
        self.assertGreater(self.item(self.plan("2b-fp8", *options, "w8a8"), "activations"),
                           self.item(self.plan("2b-fp8", *options, "fast"), "activations"))
        refused = run("plan", self.folder / "2b-bf16", "--gpu", "8GiB", "--arithmetic", "w8a8")
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("--quantize-fp8", refused.stderr)

    def test_4b_in_bf16_does_not_fit_and_the_advice_is_to_quantise(self):
        plan = self.plan("4b-bf16")
        self.assertEqual(plan["verdict"], "DOES NOT FIT")
        self.assertGreater(plan["total_bytes"], plan["free_bytes"])
        self.assertTrue(any("--quantize-fp8" in line and "which fits" in line
                            for line in plan["advice"]), plan["advice"])

    def test_quantising_takes_what_the_fp8_checkpoint_takes(self):
        quantised = self.plan("4b-bf16", "--quantize-fp8")
        stored = self.plan("4b-fp8")
        self.assertEqual(quantised["items"], stored["items"])

    def test_a_visual_token_takes_16_or_20_kib(self):
        for model, kib in (("2b-fp8", 16), ("4b-fp8", 20)):
            with self.subTest(model):
                small, large = (self.item(self.plan(model, "--context", 8192, "--max-pixels",
                                                    tokens * 1024), "visual store")
                                for tokens in (1024, 5120))
                self.assertEqual(large - small, 4096 * kib * 1024)

    def test_keys_and_values_are_counted_by_hand(self):
        # 2B: 28 layers of 8 heads of 128; 4B: 36 layers. Keys and values in 2 bytes.
        for model, layers in (("2b-fp8", 28), ("4b-fp8", 36)):
            plan = self.plan(model, "--context", 4096, "--kv", "bf16", "--sequences", 2)
            self.assertEqual(self.item(plan, "kv cache"), 2 * 4096 * layers * 2 * 8 * 128 * 2)

    def test_the_targets_of_the_8_gb_card_hold(self):
        # Context 4096 and a picture of 1024x768: at most these above the bare context, which takes
        # 527 MiB where the whole backend was measured.
        for model, vision, most in (("2b-fp8", "resident", 3350), ("4b-fp8", "resident", 5750),
                                    ("2b-fp8", "on-demand", 2620), ("4b-fp8", "on-demand", 5040)):
            with self.subTest(f"{model} {vision}"):
                plan = self.plan(model, "--context", 4096, "--max-pixels", 1024 * 768, "--vision",
                                 vision)
                self.assertEqual(self.item(plan, "cuda context and kernels"), 572 * MIB)
                self.assertLessEqual(plan["total_bytes"] - 527 * MIB, most * MIB)

    def test_a_4k_picture_runs_on_both_with_choices_announced(self):
        for model in ("2b-fp8", "4b-fp8"):
            plan = self.plan(model, "--context", 8448, "--max-pixels", 3840 * 2176)
            self.assertNotEqual(plan["verdict"], "DOES NOT FIT", plan)

    def test_what_fits_fits_and_more_does_not(self):
        base = self.plan("4b-fp8", "--max-pixels", 1024 * 768, "--kv", "bf16", "--vision",
                         "resident")
        asked = ["--max-pixels", 1024 * 768, "--kv", "bf16", "--vision", "resident", "--context"]
        longest = base["longest_context"]
        self.assertNotEqual(self.plan("4b-fp8", *asked, longest)["verdict"], "DOES NOT FIT")
        self.assertEqual(self.plan("4b-fp8", *asked, longest + 32)["verdict"], "DOES NOT FIT")

    def test_the_cap_is_a_cap(self):
        free = self.plan("4b-fp8")
        capped = self.plan("4b-fp8", "--vram", "5.5GiB")
        self.assertGreater(free["total_bytes"], 5632 * MIB)
        self.assertLessEqual(capped["total_bytes"], 5632 * MIB)
        self.assertEqual(capped["verdict"], "TIGHT")
        self.assertTrue(any("to fit the memory" in line for line in capped["advice"]))

    def test_a_larger_card_fits_more(self):
        small = self.plan("4b-fp8")
        large = json.loads(run("plan", self.folder / "4b-fp8", "--gpu", "16GiB", "--json").stdout)
        self.assertEqual(large["verdict"], "FITS")
        self.assertGreater(large["longest_context"], small["longest_context"])
        self.assertGreater(large["most_sequences"], small["most_sequences"])

    def test_the_table_says_the_same(self):
        plan = self.plan("2b-fp8")
        table = run("plan", self.folder / "2b-fp8", "--gpu", "8GiB").stdout
        for item in plan["items"]:
            mib = (item["bytes"] + MIB // 2) // MIB
            self.assertRegex(table, rf"(?m)^  {re.escape(item['name'])} +{mib} MiB$")
        for words in ("taken by the desktop", "free", "largest picture", "longest context",
                      "most sequences", plan["verdict"] + ":"):
            self.assertIn(words, table)

    def test_the_bundled_model_is_the_default(self):
        result = run("plan", "--gpu", "8GiB", "--json")
        self.assertEqual(json.loads(result.stdout)["verdict"], "FITS", result.stderr)
        self.assertEqual(result.stdout, run("plan", MODEL, "--gpu", "8GiB", "--json").stdout)

    def test_mistakes_are_told(self):
        for arguments, code, words in (
                (["plan", self.folder / "nothing"], 3, "nothing"),
                (["plan", "--gpu", "lots"], 2, "'lots' is not a size"),
                (["plan", "--gpu", "100MiB"], 2, "100 MiB"),
                (["plan", "--vram", "-1GiB"], 2, "is not a size"),
                (["plan", self.folder / "2b-fp8", "--context", "1000000"], 2, "1000000"),
                (["plan", "--sequences", "0"], 2, "between 1 and 1024")):
            with self.subTest(arguments):
                result = run(*arguments)
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertIn(words, result.stderr)
                self.assertEqual(result.stdout, "")

    def test_every_console_block_of_the_documentation_is_what_the_program_prints(self):
        blocks = re.findall(r"^```console\n\$ glimpse (plan [^\n]*)\n(.*?)^```$", DOCUMENTATION,
                            re.DOTALL | re.MULTILINE)
        self.assertGreaterEqual(len(blocks), 3)
        for command, expected in blocks:
            with self.subTest(command):
                arguments = command.split()
                arguments[1] = str(self.folder / arguments[1])
                self.assertEqual(run(*arguments).stdout, expected)

    def test_every_row_of_the_documentation_is_what_the_program_plans(self):
        rows = re.findall(r"^\| `(\w+-\w+)([^`]*)` \| ([\d,]+) \| (\w[\w ]*) \| ([\d,]+) \| "
                          r"([\d,]+) \|$", DOCUMENTATION, re.MULTILINE)
        self.assertGreaterEqual(len(rows), 8)
        for model, arguments, *expected in rows:
            with self.subTest(model + arguments):
                plan = json.loads(run("plan", self.folder / model, *arguments.split(),
                                      "--json").stdout)
                found = [f"{round(plan['total_bytes'] / MIB):,}", plan["verdict"],
                         f"{plan['longest_context']:,}", str(plan["most_sequences"])]
                self.assertEqual(found, expected)


if __name__ == "__main__":
    unittest.main()
