"""Random pictogram scenes: what lies where on which background, and the true answers about it.

Standard library only, so that it can be tested anywhere; draw.py makes pixels of a scene.
"""

import dataclasses
import json

import wording

COLORS = {
    "white": (250, 250, 250), "light gray": (205, 205, 205), "gray": (128, 128, 128),
    "dark gray": (70, 70, 70), "black": (12, 12, 12), "light blue": (170, 215, 245),
    "blue": (40, 100, 220), "dark blue": (15, 30, 100), "light green": (175, 235, 170),
    "green": (45, 165, 65), "dark green": (10, 75, 30), "yellow": (250, 220, 50),
    "light yellow": (255, 248, 185), "orange": (250, 145, 35), "red": (215, 35, 40),
    "pink": (250, 175, 200), "purple": (130, 60, 180), "lavender": (210, 195, 245),
    "brown": (125, 80, 45), "beige": (235, 220, 190), "teal": (20, 140, 140),
}
MAX_OBJECTS = 5
TEXT_ASPECT = 4  # rendered words are strips, four times as wide as high
# Largest side of an object as a share of the shorter side of the picture, by number of objects.
LARGEST_SHARE = {1: 0.95, 2: 0.62, 3: 0.5, 4: 0.42, 5: 0.38}
BOX_SCALE = 1000  # coordinates of answers run from 0 to this on both axes


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What scenes are made of. Boxes are (left, top, right, bottom) as shares of the sprite."""
    names: list           # of the pictograms
    boxes: list           # [style][pictogram]: the visible part
    texts: list           # words that can be written
    text_boxes: list      # [text]: the inked part, as shares of the strip's width


@dataclasses.dataclass(frozen=True)
class PlacedObject:
    pictogram: int
    style: int
    center_x: float  # pixels
    center_y: float
    size: float      # side of the square sprite


@dataclasses.dataclass(frozen=True)
class PlacedText:
    text: int
    center_x: float
    center_y: float
    width: float
    rgb: tuple


@dataclasses.dataclass(frozen=True)
class Scene:
    catalogue: Catalogue
    width: int
    height: int
    objects: list       # PlacedObject, from left to right
    text: object        # PlacedText or None
    background: list    # one colour name, or two: it fades from top to bottom
    background_rgb: list

    # ---- geometry ------------------------------------------------------------------------------

    def pixel_box(self, item):
        """Tight box of an object or the text, in pixels."""
        if isinstance(item, PlacedText):
            left = item.center_x - item.width / 2
            top = item.center_y - item.width / TEXT_ASPECT / 2
            size, box = item.width, self.catalogue.text_boxes[item.text]
        else:
            left, top = item.center_x - item.size / 2, item.center_y - item.size / 2
            size, box = item.size, self.catalogue.boxes[item.style][item.pictogram]
        return (left + box[0] * size, top + box[1] * size,
                left + box[2] * size, top + box[3] * size)

    def box(self, item):
        """Tight box in thousandths of the picture, as the answers give it."""
        limits = (self.width, self.height, self.width, self.height)
        return [round(min(1, max(0, value / limit)) * BOX_SCALE)
                for value, limit in zip(self.pixel_box(item), limits)]

    def place(self, item):
        return wording.place(item.center_x / self.width, item.center_y / self.height)

    # ---- answers -------------------------------------------------------------------------------

    def name(self, item):
        return self.catalogue.names[item.pictogram]

    @property
    def written(self):
        return self.catalogue.texts[self.text.text] if self.text else None

    def background_phrase(self):
        if len(self.background) == 1:
            return f"{wording.with_article(self.background[0])} background"
        return f"a background that fades from {self.background[0]} to {self.background[1]}"

    def describe(self):
        parts = [wording.with_article(self.name(item)) for item in self.objects]
        if self.text:
            parts.append(f'the text "{self.written}"')
        return f"{wording.capitalised(wording.listed(parts))} on {self.background_phrase()}."

    def describe_in_detail(self):
        shown = self.background_phrase()
        if self.objects:
            shown = f"{self.count_phrase()} on {shown}"
        sentences = [f"The image shows {shown}."]
        for item in self.objects:
            name = self.name(item)
            subject = wording.capitalised(wording.with_article(name))
            sentences.append(f"{subject} {wording.verb(name)} {self.place(item)}.")
        if self.text:
            sentences.append(f'The text "{self.written}" is {self.place(self.text)}.')
        return " ".join(sentences)

    def count_phrase(self):
        count = len(self.objects)
        return f"{wording.NUMBERS[count]} object{'' if count == 1 else 's'}"

    def list_objects(self):
        if not self.objects:
            return "There are no objects in the image."
        names = [wording.with_article(self.name(item)) for item in self.objects]
        return wording.capitalised(wording.listed(names)) + "."

    def count(self):
        verb = "is" if len(self.objects) == 1 else "are"
        return f"There {verb} {self.count_phrase()} in the image."

    def color(self):
        if len(self.background) == 1:
            return f"The background is {self.background[0]}."
        return f"The background fades from {self.background[0]} to {self.background[1]}."

    def read(self):
        return self.written or "There is no text in the image."

    def locate(self, items):
        """The boxes of some objects as Qwen3-VL writes them."""
        if not items:
            return "```json\n[]\n```"
        lines = [json.dumps({"bbox_2d": self.box(item), "label": self.name(item)},
                            ensure_ascii=True) for item in items]
        return "```json\n[\n\t" + ",\n\t".join(lines) + "\n]\n```"

    def locate_in_words(self, item):
        name = self.name(item)
        return f"The {name} {wording.verb(name)} {self.place(item)}."

    def truth(self):
        """All answers and boxes, in the layout of tests/golden/demo/truth.json."""
        return {"width": self.width, "height": self.height, "describe": self.describe(),
                "detail": self.describe_in_detail(), "list": self.list_objects(),
                "count": self.count(), "color": self.color(), "read": self.read(),
                "boxes": [{"bbox_2d": self.box(item), "label": self.name(item)}
                          for item in self.objects]}


def overlaps(box, others):
    return any(box[2] > other[0] and box[0] < other[2] and box[3] > other[1] and box[1] < other[3]
               for other in others)


def square(center_x, center_y, width, height):
    return (center_x - width / 2, center_y - height / 2, center_x + width / 2,
            center_y + height / 2)


def random_text(rng, catalogue, width, height, dark):
    """A word somewhere, in a colour that can be read on the background."""
    strip = rng.uniform(0.45, 0.95) * min(width, TEXT_ASPECT * height)
    half_height = strip / TEXT_ASPECT / 2
    colors = [rgb for rgb in COLORS.values() if abs(sum(rgb) / 3 - dark) > 70]
    return PlacedText(text=rng.randrange(len(catalogue.texts)),
                      center_x=rng.uniform(strip / 2, width - strip / 2),
                      center_y=rng.uniform(half_height, height - half_height),
                      width=strip, rgb=rng.choice(colors))


def random_scene(rng, catalogue, width, height):
    """A scene of zero to five objects that do not overlap, in about a third of the cases with a
    word."""
    wanted = rng.choices([1, 2, 3, 4, 5, 0], [0.36, 0.24, 0.19, 0.12, 0.06, 0.03])[0]
    background = ([rng.choice(list(COLORS))] if rng.random() < 0.8
                  else rng.sample(list(COLORS), 2))
    background_rgb = [tuple(min(255, max(0, value + rng.randint(-10, 10)))
                            for value in COLORS[name]) for name in background]
    brightness = sum(map(sum, background_rgb)) / len(background_rgb) / 3

    taken, text = [], None
    if catalogue.texts and (not wanted or rng.random() < 0.28):
        text = random_text(rng, catalogue, width, height, brightness)
        taken.append(square(text.center_x, text.center_y, text.width, text.width / TEXT_ASPECT))
    elif not catalogue.texts:
        wanted = max(wanted, 1)  # an empty picture has no description

    objects, used = [], set()
    largest = LARGEST_SHARE.get(wanted, 0) * (0.8 if text else 1)
    smallest = 0.5 * largest if wanted > 1 else min(0.3, largest)
    for _ in range(wanted):
        pictogram = rng.randrange(len(catalogue.names))
        if catalogue.names[pictogram] in used:
            continue
        for attempt in range(12):  # smaller with each failure
            size = rng.uniform(smallest, largest) * min(width, height) * (1 - 0.03 * attempt)
            x = rng.uniform(size / 2, width - size / 2)
            y = rng.uniform(size / 2, height - size / 2)
            box = square(x, y, size, size)
            if overlaps(box, taken):
                continue
            taken.append(box)
            used.add(catalogue.names[pictogram])
            style = 1 if len(catalogue.boxes) > 1 and rng.random() < 0.3 else 0
            objects.append(PlacedObject(pictogram, style, x, y, size))
            break
    if not objects and text is None:  # nothing found room: try again
        return random_scene(rng, catalogue, width, height)
    objects.sort(key=lambda item: item.center_x)
    return Scene(catalogue, width, height, objects, text, background, background_rgb)
