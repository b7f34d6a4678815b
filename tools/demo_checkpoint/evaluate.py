"""Draws unseen scenes, has the built program describe them and compares with the ground truth.

usage: evaluate.py [--program build/release/glimpse] [--count 48] [--seed 1] [--arithmetic fast]

Needs Pillow and NumPy. Exit status 1 when fewer than --least of the descriptions are exact.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import conversations
import draw
import sprites

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXACT_KINDS = ["detail", "count", "color", "read"]


def ask(program, prompt, pictures, arguments):
    """Greedy answers of one process to one prompt about many pictures."""
    command = [program, "caption", "--json", "--quiet", "--temperature", "0", "--prompt", prompt,
               *arguments, *map(str, pictures)]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if result.returncode != 0:
        sys.exit(f"{program} ended with {result.returncode}: {result.stderr.strip()}")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line["text"] for line in lines]


def intersection_over_union(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0, width) * max(0, height)
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (both - shared) if both > shared else 0.0


def parse_boxes(answer):
    """label -> box of an answer; an answer that is no JSON list locates nothing."""
    try:
        entries = json.loads(answer.replace("```json", "").replace("```", ""))
        return {entry["label"]: entry["bbox_2d"] for entry in entries
                if len(entry["bbox_2d"]) == 4}
    except (ValueError, TypeError, KeyError):
        return {}


def box_scores(truths, answers):
    """IoU of each true object with the box of its label; 0 where the label was not given."""
    scores = []
    for truth, answer in zip(truths, answers):
        found = parse_boxes(answer)
        scores += [intersection_over_union(box["bbox_2d"], found[box["label"]])
                   if box["label"] in found else 0.0 for box in truth["boxes"]]
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    draw.add_arguments(parser)
    parser.set_defaults(count=48)
    parser.add_argument("--program", default=str(ROOT / "build" / "release" / "glimpse"))
    parser.add_argument("--least", type=float, default=0.85, help="share of exact descriptions")
    parser.add_argument("--show", type=int, default=3, help="differences printed of each kind")
    options, arguments = parser.parse_known_args()  # the rest goes to the program
    artist = draw.Artist(options.pictograms, sprites.find_fonts(options.fonts))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        truths = draw.draw_set(artist, folder, options.count, options.seed)
        pictures = [folder / truth["file"] for truth in truths]
        shares = {}
        for kind in EXACT_KINDS:
            prompt = conversations.PROMPTS[kind][0]
            answers = ask(options.program, prompt, pictures, arguments)
            wrong = [(truth, answer) for truth, answer in zip(truths, answers)
                     if truth[kind] != answer]
            shares[kind] = 1 - len(wrong) / len(truths)
            print(f"{prompt} {len(truths) - len(wrong)} of {len(truths)} exact")
            for truth, answer in wrong[:options.show]:
                print(f"  {truth['file']}\n    true: {truth[kind]}\n    said: {answer}")
        prompt = conversations.PROMPTS["locate"][0]
        scores = box_scores(truths, ask(options.program, prompt, pictures, arguments))
        print(f"{prompt} {sum(score > 0.5 for score in scores)} of {len(scores)} with IoU over "
              f"0.5, mean IoU {sum(scores) / max(1, len(scores)):.3f}")
    return 0 if shares["detail"] >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
