"""tools/demo_checkpoint without torch: scenes, answers, drawing, FP8. NumPy and Pillow parts skip."""

import json
import pathlib
import random
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "demo_checkpoint"))

import conversations  # noqa: E402
import scenes  # noqa: E402
import safetensors_file  # noqa: E402
import wording  # noqa: E402

try:
    import numpy as np
    import quantize
except ImportError:
    np = None
try:
    import draw
    import evaluate
except ImportError:
    draw = None

PICTOGRAMS = ROOT / "tools" / "demo_checkpoint" / "pictograms"
NAMES = [entry["name"] for entry in json.loads((PICTOGRAMS / "names.json").read_text("utf-8"))]
CATALOGUE = scenes.Catalogue(names=NAMES, boxes=[[(0.1, 0.05, 0.9, 0.95)] * len(NAMES)] * 2,
                             texts=["Peace", "MUSIC 7"], text_boxes=[(0.1, 0.02, 0.9, 0.2)] * 2)


def some_scenes(count, width=640, height=480):
    rng = random.Random(17)
    return [scenes.random_scene(rng, CATALOGUE, width, height) for _ in range(count)]


class Wording(unittest.TestCase):
    def test_articles(self):
        for name, expected in [("rocket", "a rocket"), ("umbrella", "an umbrella"),
                               ("unicorn", "a unicorn"), ("glasses", "glasses"),
                               ("bus", "a bus"), ("Santa Claus", "Santa Claus"),
                               ("slice of pizza", "a slice of pizza"),
                               ("face with tears of joy", "a face with tears of joy")]:
            self.assertEqual(wording.with_article(name), expected)

    def test_places(self):
        self.assertEqual(wording.place(0.5, 0.5), "in the center")
        self.assertEqual(wording.place(0.1, 0.5), "on the left")
        self.assertEqual(wording.place(0.5, 0.9), "at the bottom")
        self.assertEqual(wording.place(0.9, 0.1), "at the top right")

    def test_lists(self):
        self.assertEqual(wording.listed(["a", "b", "c"]), "a, b and c")
        self.assertEqual(wording.listed(["a"]), "a")


class Scenes(unittest.TestCase):
    def test_the_same_seed_gives_the_same_scenes(self):
        self.assertEqual([scene.truth() for scene in some_scenes(20)],
                         [scene.truth() for scene in some_scenes(20)])

    def test_objects_lie_inside_and_do_not_overlap(self):
        for scene in some_scenes(200, 350, 520):
            squares = [scenes.square(item.center_x, item.center_y, item.size, item.size)
                       for item in scene.objects]
            for number, box in enumerate(squares):
                self.assertGreaterEqual(min(box), -1e-9)
                self.assertLessEqual(box[2], scene.width + 1e-9)
                self.assertLessEqual(box[3], scene.height + 1e-9)
                self.assertFalse(scenes.overlaps(box, squares[:number]))

    def test_descriptions_name_everything(self):
        for scene in some_scenes(100):
            for item in scene.objects:
                self.assertIn(scene.name(item).lower(), scene.describe().lower())
                self.assertIn(scene.name(item).lower(), scene.describe_in_detail().lower())
            if scene.text:
                self.assertIn(f'"{scene.written}"', scene.describe())

    def test_boxes_are_thousandths_of_the_picture(self):
        item = scenes.PlacedObject(pictogram=0, style=0, center_x=320, center_y=240, size=200)
        scene = scenes.Scene(CATALOGUE, 640, 480, [item], None, ["teal"], [(20, 140, 140)])
        self.assertEqual(scene.box(item), [375, 312, 625, 688])

    def test_wording_is_that_of_the_golden_truths(self):
        # The golden pictures were described by the generator this one was rewritten from.
        truths = json.loads((ROOT / "tests/golden/demo/truth.json").read_text("utf-8"))
        for truth in truths:
            # Objects are listed from left to right; two with the same left edge may be swapped
            # only by their centres, which the truth does not hold.
            boxes = sorted(truth["boxes"],
                           key=lambda entry: entry["bbox_2d"][0] + entry["bbox_2d"][2])
            items = [wording.with_article(entry["label"]) for entry in boxes]
            self.assertEqual(wording.capitalised(wording.listed(items)) + ".", truth["list"])

    def test_located_boxes_are_json(self):
        for scene in some_scenes(30):
            answer = scene.locate(scene.objects)
            entries = json.loads(answer.removeprefix("```json\n").removesuffix("\n```"))
            self.assertEqual([entry["label"] for entry in entries],
                             [scene.name(item) for item in scene.objects])


class Conversations(unittest.TestCase):
    def test_questions_differ_and_are_answered(self):
        rng = random.Random(3)
        for scene in some_scenes(200):
            turns = conversation = conversations.conversation(rng, scene)
            self.assertLessEqual(len(conversation), 3)
            self.assertEqual(len({question for question, _ in turns}), len(turns))
            self.assertTrue(all(question and answer for question, answer in turns))

    def test_exists_answers_are_true(self):
        rng = random.Random(4)
        seen = set()
        for scene in some_scenes(200):
            turn = conversations.question_about(rng, scene, "exists")
            if turn:
                present = any(f"there {wording.with_article(scene.name(item))} in" in turn[0]
                              for item in scene.objects)
                self.assertEqual(turn[1], "Yes." if present else "No.")
                seen.add(turn[1])
        self.assertEqual(seen, {"Yes.", "No."})


class Safetensors(unittest.TestCase):
    def test_what_is_written_is_read_back(self):
        tensors = {"b": safetensors_file.RawTensor("BF16", (2, 1), b"\1\2\3\4"),
                   "a": safetensors_file.RawTensor("F8_E4M3", (3,), b"xyz"),
                   "empty": safetensors_file.RawTensor("F32", (0, 4), b"")}
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "some.safetensors"
            safetensors_file.write(path, tensors)
            self.assertEqual(safetensors_file.read(path), tensors)


@unittest.skipIf(np is None, "NumPy is not installed")
class Quantize(unittest.TestCase):
    def test_every_e4m3_value_is_its_own_nearest(self):
        values = quantize.e4m3_values()
        self.assertEqual((values[0], values[1], values[8], values[126]),
                         (0, 2.0**-9, 2.0**-6, 448))
        self.assertEqual(quantize.to_e4m3(values).tolist(), list(range(127)))
        self.assertEqual(quantize.to_e4m3(-values[1:]).tolist(), list(range(129, 255)))

    def test_ties_go_to_the_even_mantissa(self):
        values = quantize.e4m3_values()
        middles = (values[:-1] + values[1:]) / 2
        codes = quantize.to_e4m3(middles)
        self.assertTrue((codes % 2 == 0).all())
        self.assertTrue((np.abs(codes - np.arange(126) - 0.5) == 0.5).all())

    def test_rounding_to_bf16_ties_to_even(self):
        values = np.array([1, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20], np.float32)
        self.assertEqual(quantize.round_to_bf16(values).tolist(),
                         [1, 1, 1 + 2.0**-6, 1 + 2.0**-7])

    def test_error_is_within_half_a_step_on_ragged_blocks(self):
        weight = np.random.default_rng(5).normal(size=(130, 257)).astype(np.float32)
        codes, scales = quantize.quantize(weight)
        self.assertEqual((codes.shape, scales.shape), ((130, 257), (2, 3)))
        values = quantize.e4m3_values()[codes & 127] * np.where(codes >> 7, -1, 1)
        spread = np.repeat(np.repeat(scales, 128, 0), 128, 1)[:130, :257]
        # Three mantissa bits: half a step is 2^-4 of the value; below 2^-6 steps are 2^-9. The
        # largest value may be cut by the rounding of its scale, 2^-9 of it.
        allowed = np.maximum(np.abs(weight) * 2.0**-4, spread * 2.0**-10)
        self.assertTrue((np.abs(values * spread - weight) <= allowed * (1 + 1e-6)).all())

    def test_a_block_of_zeros_stays_zero(self):
        codes, scales = quantize.quantize(np.zeros((128, 128), np.float32))
        self.assertEqual((codes.max(), scales.tolist()), (0, [[1.0]]))


@unittest.skipIf(draw is None, "Pillow or NumPy is not installed")
class Drawing(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.artist = draw.Artist(PICTOGRAMS, fonts=[])

    def test_a_drawn_object_fills_its_box_and_nothing_else(self):
        catalogue = self.artist.catalogue
        item = scenes.PlacedObject(pictogram=20, style=0, center_x=200, center_y=100, size=120)
        scene = scenes.Scene(catalogue, 301, 203, [item], None, ["white"], [(250, 250, 250)])
        pixels = np.asarray(self.artist.draw(scene)).astype(int)
        self.assertEqual(pixels.shape, (203, 301, 3))
        rows, columns = np.where((np.abs(pixels - 250) > 40).any(axis=2))
        left, top, right, bottom = scene.pixel_box(item)
        self.assertGreaterEqual(columns.min(), left - 2)
        self.assertLessEqual(columns.max(), right + 2)
        self.assertGreaterEqual(rows.min(), top - 2)
        self.assertLessEqual(rows.max(), bottom + 2)
        self.assertGreater(len(rows), 0.2 * (right - left) * (bottom - top))

    def test_a_set_has_a_truth_for_each_file(self):
        with tempfile.TemporaryDirectory() as folder:
            truths = draw.draw_set(self.artist, pathlib.Path(folder), count=4, seed=9)
            for truth in truths:
                with draw.Image.open(pathlib.Path(folder) / truth["file"]) as image:
                    self.assertEqual(image.size, (truth["width"], truth["height"]))

    def test_scores_of_boxes(self):
        same, half = [0, 0, 10, 10], [0, 0, 10, 5]
        self.assertEqual(evaluate.intersection_over_union(same, same), 1)
        self.assertEqual(evaluate.intersection_over_union(same, half), 0.5)
        self.assertEqual(evaluate.intersection_over_union(same, [20, 20, 30, 30]), 0)
        truths = [{"boxes": [{"label": "rocket", "bbox_2d": same},
                             {"label": "bus", "bbox_2d": same}]}]
        answer = '```json\n[\n\t{"bbox_2d": [0, 0, 10, 5], "label": "rocket"}\n]\n```'
        self.assertEqual(evaluate.box_scores(truths, [answer]), [0.5, 0.0])
        self.assertEqual(evaluate.box_scores(truths, ["no JSON"]), [0.0, 0.0])


if __name__ == "__main__":
    unittest.main()
