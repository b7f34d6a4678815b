"""Pictograms and rendered words as arrays. Needs Pillow and NumPy.

As a program it packs them for training:
    sprites.py --pictograms FOLDER [--second-style FOLDER] --fonts FOLDER --out sprites.npz
A folder of pictograms holds names.json, a list of {"file", "name"}, and the pictures it names.
"""

import argparse
import json
import pathlib
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import scenes

HERE = pathlib.Path(__file__).resolve().parent
SPRITE_SIZE = 128
STRIP = (256, 64)     # rendered words
VISIBLE_ALPHA = 20    # fainter pixels (shadows) are not part of a tight box

WORDS = sorted(set("""
hello world open sale stop exit coffee music pizza summer winter spring autumn happy birthday love
peace home car train plane ship cat dog bird fish apple bread milk water fire earth wind light dark
red green blue yellow black white pink gold silver free new old big small fast slow hot cold yes no
left right up down north south east west day night morning evening today tomorrow one two three four
five six seven eight nine ten zero start end play pause next back menu help info news shop store
bank hotel cafe bar park school office hospital museum library station airport street road bridge
river lake sea ocean beach island mountain forest garden flower tree sun moon star sky cloud rain
snow storm king queen hero team game goal win top best good great super magic dream smile laugh
dance sing read write code data robot model vision image photo camera video sound radio phone mail
web note book page line word text name city town village house room door window table chair bed lamp
clock key lock box bag hat shoe shirt dress coat ring gift party wedding market price tag lunch
dinner breakfast tea juice wine beer cake sugar salt pepper rice soup fruit salad cheese butter egg
honey lemon orange grape mango banana cherry melon peach""".split()))


def pictogram_folder():
    """All pictograms where the reference material stands beside the project, else our share."""
    full = HERE.parents[2] / "shared" / "demo-checkpoint" / "training" / "pictograms"
    return full if full.is_dir() else HERE / "pictograms"


def load_pictograms(folder, size=SPRITE_SIZE):
    """Names, and RGBA pixels with premultiplied alpha [count, size, size, 4] uint8."""
    entries = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    pixels = [np.asarray(Image.open(folder / entry["file"]).convert("RGBA").convert("RGBa")
                         .resize((size, size), Image.Resampling.LANCZOS)) for entry in entries]
    return [entry["name"] for entry in entries], np.stack(pixels)


def tight_boxes(sprites):
    """(left, top, right, bottom) of the visible part of each sprite, as shares of its side."""
    boxes, size = [], sprites.shape[1]
    for sprite in sprites:
        rows, columns = np.where(sprite[..., 3] > VISIBLE_ALPHA)
        boxes.append((columns.min() / size, rows.min() / size,
                      (columns.max() + 1) / size, (rows.max() + 1) / size))
    return boxes


def random_text(rng):
    """A word, a number or two of them, in upper, title or lower case."""
    kind = rng.random()
    if kind < 0.55:
        text = rng.choice(WORDS)
    elif kind < 0.75:
        text = str(rng.randrange(10 ** rng.randint(1, 4)))
    else:
        second = rng.choice(WORDS) if rng.random() < 0.6 else str(rng.randrange(100))
        text = f"{rng.choice(WORDS)} {second}"
    return rng.choices([text.upper(), text.title(), text], [0.4, 0.3, 0.3])[0]


def render_text(text, font_file):
    """A mask [64, 256] uint8 with the text as large as it fits, and its box in shares of 256."""
    width, height = STRIP
    for size in range(56, 8, -2):
        font = ImageFont.truetype(str(font_file), size)
        left, top, right, bottom = font.getbbox(text)
        if right - left <= width - 8 and bottom - top <= height - 8:
            break
    image = Image.new("L", STRIP, 0)
    ImageDraw.Draw(image).text(((width - right - left) / 2, (height - bottom - top) / 2), text,
                               font=font, fill=255)
    return np.asarray(image), tuple(value / width for value in image.getbbox())


def find_fonts(folders):
    """Text fonts below the given folders, in a fixed order."""
    found = sorted(path for folder in folders for path in pathlib.Path(folder).rglob("*.ttf"))
    return [path for path in found if "Math" not in path.name and "Symbol" not in path.name]


def render_texts(rng, fonts, count):
    """`count` random texts in random fonts: texts, masks and boxes; empty without fonts."""
    texts = [random_text(rng) for _ in range(count if fonts else 0)]
    rendered = [render_text(text, rng.choice(fonts)) for text in texts]
    return texts, [mask for mask, _ in rendered], [box for _, box in rendered]


def main():
    parser = argparse.ArgumentParser(description="Packs pictograms and rendered words.")
    parser.add_argument("--pictograms", type=pathlib.Path, default=pictogram_folder())
    parser.add_argument("--second-style", type=pathlib.Path,
                        help="the same pictograms by another artist, in the same layout")
    parser.add_argument("--fonts", nargs="+", default=["/usr/share/fonts/truetype"])
    parser.add_argument("--texts", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    names, first = load_pictograms(options.pictograms)
    styles = [first]
    if options.second_style:
        other_names, other = load_pictograms(options.second_style)
        index = {name: i for i, name in enumerate(other_names)}
        styles.append(np.stack([other[index[name]] if name in index else first[i]
                                for i, name in enumerate(names)]))
    fonts = find_fonts(options.fonts)
    texts, masks, text_boxes = render_texts(random.Random(options.seed), fonts, options.texts)
    np.savez_compressed(options.out, names=names, styles=np.stack(styles), texts=texts,
                        masks=np.array(masks, dtype=np.uint8), text_boxes=text_boxes)
    print(f"{len(names)} pictograms in {len(styles)} styles, {len(texts)} texts in "
          f"{len(fonts)} fonts")


def load_pack(path):
    """What main() wrote: the catalogue, sprites [style, n, size, size, 4], masks [n, 64, 256]."""
    pack = np.load(path)
    catalogue = scenes.Catalogue(
        names=pack["names"].tolist(), boxes=[tight_boxes(style) for style in pack["styles"]],
        texts=pack["texts"].tolist(), text_boxes=pack["text_boxes"].tolist())
    return catalogue, pack["styles"], pack["masks"]


if __name__ == "__main__":
    main()
