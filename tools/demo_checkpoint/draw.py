"""Draws scenes as picture files, with another renderer than training's. Needs Pillow and NumPy.

usage: draw.py --out FOLDER [--count 16] [--seed 1]      pictures, and truth.json beside them
"""

import argparse
import json
import pathlib
import random

import numpy as np
from PIL import Image

import scenes
import sprites

SIZES = [(640, 480), (480, 640), (800, 600), (512, 512), (1280, 720), (300, 200), (256, 256),
         (720, 1080), (1000, 700), (400, 400), (1600, 900), (350, 520)]
FORMATS = [("png", {}), ("jpg", {"quality": 92}), ("webp", {"lossless": True})]


class Artist:
    """A catalogue with the pixels to draw it. Words need fonts; without any, scenes have none."""

    def __init__(self, folder, fonts, num_texts=200, seed=7):
        self.folder = folder
        entries = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        self.files = [entry["file"] for entry in entries]
        names, pixels = sprites.load_pictograms(folder)
        texts, self.masks, text_boxes = sprites.render_texts(random.Random(seed), fonts, num_texts)
        self.catalogue = scenes.Catalogue(names, [sprites.tight_boxes(pixels)], texts, text_boxes)

    def random_scene(self, rng, width, height):
        return scenes.random_scene(rng, self.catalogue, width, height)

    def draw(self, scene):
        """The scene as an RGB image."""
        top, bottom = scene.background_rgb[0], scene.background_rgb[-1]
        column = np.linspace(top, bottom, scene.height).round().astype(np.uint8)
        image = Image.fromarray(np.repeat(column[:, None], scene.width, axis=1))
        for item in scene.objects:
            side = max(1, round(item.size))
            sprite = Image.open(self.folder / self.files[item.pictogram]).convert("RGBA")
            # Premultiplied while resizing: no dark seams around the pictogram.
            sprite = sprite.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
            sprite = sprite.convert("RGBA")
            corner = (round(item.center_x - item.size / 2), round(item.center_y - item.size / 2))
            image.paste(sprite, corner, sprite)
        if scene.text:
            text = scene.text
            size = (round(text.width), round(text.width / scenes.TEXT_ASPECT))
            mask = Image.fromarray(self.masks[text.text]).resize(size, Image.Resampling.LANCZOS)
            corner = (round(text.center_x - text.width / 2),
                      round(text.center_y - text.width / scenes.TEXT_ASPECT / 2))
            image.paste(Image.new("RGB", size, tuple(text.rgb)), corner, mask)
        return image


def draw_set(artist, out, count, seed):
    """Writes `count` pictures of varied size and format; their truths, as truth.json has them."""
    out.mkdir(parents=True, exist_ok=True)
    rng, truths = random.Random(seed), []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        scene = artist.random_scene(rng, width, height)
        suffix, settings = FORMATS[number % len(FORMATS)]
        name = f"{number:03d}.{suffix}"
        artist.draw(scene).save(out / name, **settings)
        truths.append({"file": name, **scene.truth()})
    (out / "truth.json").write_text(json.dumps(truths, indent=1), encoding="utf-8")
    return truths


def add_arguments(parser):
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictograms", type=pathlib.Path, default=sprites.pictogram_folder())
    parser.add_argument("--fonts", nargs="*", default=["/usr/share/fonts/truetype"])


def main():
    parser = argparse.ArgumentParser(description="Draws random scenes with their ground truth.")
    add_arguments(parser)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    artist = Artist(options.pictograms, sprites.find_fonts(options.fonts))
    draw_set(artist, options.out, options.count, options.seed)


if __name__ == "__main__":
    main()
