"""Batches of scenes for training: token ids from worker processes, pixels drawn on the GPU.

Needs torch and NumPy.
"""

import dataclasses
import math
import os
import random

import numpy as np
import torch
import torch.nn.functional as F

import conversations
import network
import scenes

SIZES = [(256, 256), (256, 384), (384, 256), (384, 384), (288, 512), (512, 288)]  # height, width
TEXT_LENGTH = 208
IGNORED = -100  # label of tokens that are not learned


@dataclasses.dataclass
class Batch:
    """B scenes of one size."""
    ids: torch.Tensor         # [B, TEXT_LENGTH] i64: what follows the picture
    labels: torch.Tensor      # [B, TEXT_LENGTH] i64: ids of answers, IGNORED elsewhere
    objects: torch.Tensor     # [B, 5, 5]: pictogram or -1, style, centre x, centre y, size
    texts: torch.Tensor       # [B, 7]: text or -1, centre x, centre y, width, red, green, blue
    background: torch.Tensor  # [B, 2, 3]: colours at the top and the bottom, 0..1
    cells: torch.Tensor       # [B, rows, columns] i64: what a picture token shows; 0: background
    size: tuple               # height, width

    def to(self, device):
        moved = {field.name: getattr(self, field.name).to(device, non_blocking=True)
                 for field in dataclasses.fields(self) if field.name != "size"}
        return Batch(size=self.size, **moved)


def empty_batch(batch, height, width, padding_id):
    shape = (batch, height // network.CELL, width // network.CELL)
    made = Batch(ids=torch.full((batch, TEXT_LENGTH), padding_id),
                 labels=torch.full((batch, TEXT_LENGTH), IGNORED),
                 objects=torch.zeros(batch, scenes.MAX_OBJECTS, 5), texts=torch.zeros(batch, 7),
                 background=torch.zeros(batch, 2, 3), cells=torch.zeros(shape, dtype=torch.long),
                 size=(height, width))
    made.objects[:, :, 0] = -1
    made.texts[:, 0] = -1
    return made


def put_scene(batch, row, scene):
    """The geometry of a scene into one row of a batch."""
    num_names = len(scene.catalogue.names)

    def cell_range(first, last):
        first, last = first / network.CELL, last / network.CELL
        return slice(max(0, round(first)), max(round(last), round(first) + 1))

    for number, item in enumerate(scene.objects):
        batch.objects[row, number] = torch.tensor(
            [item.pictogram, item.style, item.center_x, item.center_y, item.size])
        left, top, right, bottom = scene.pixel_box(item)
        batch.cells[row, cell_range(top, bottom), cell_range(left, right)] = item.pictogram + 1
    if scene.text:
        text = scene.text
        batch.texts[row] = torch.tensor([text.text, text.center_x, text.center_y, text.width,
                                         *[value / 255 for value in text.rgb]])
        left, top, right, bottom = (value / network.CELL for value in scene.pixel_box(text))
        batch.cells[row, max(0, int(top)):math.ceil(bottom),
                    max(0, int(left)):math.ceil(right)] = num_names + 1
    for end in (0, -1):
        batch.background[row, end] = torch.tensor(scene.background_rgb[end]) / 255


def put_conversation(batch, row, encoder, turns):
    """As many turns as fit; only answers are learned."""
    ids, labels = [encoder.special["<|vision_end|>"]], [IGNORED]
    for number, (question, answer) in enumerate(turns):
        asked, said = encoder.question(question, is_first=number == 0), encoder.answer(answer)
        if len(ids) + len(asked) + len(said) + len(encoder.line_break) > TEXT_LENGTH:
            break
        ids += [*asked, *said, *encoder.line_break]
        labels += [*[IGNORED] * len(asked), *said, *[IGNORED] * len(encoder.line_break)]
    batch.ids[row, :len(ids)] = torch.tensor(ids)
    batch.labels[row, :len(labels)] = torch.tensor(labels)


class SceneBatches(torch.utils.data.IterableDataset):
    """Endless batches of about `patches` patches each. Without a seed every worker takes its own
    from the system; with one a single worker repeats itself."""

    def __init__(self, catalogue, encoder, patches, seed=None):
        self.catalogue, self.encoder, self.patches, self.seed = catalogue, encoder, patches, seed

    def __iter__(self):
        rng = random.Random(os.urandom(8) if self.seed is None else self.seed)
        while True:
            height, width = rng.choice(SIZES)
            rows = max(32, self.patches // (height * width // network.PATCH**2))
            batch = empty_batch(rows, height, width, self.encoder.special["<|endoftext|>"])
            for row in range(rows):
                scene = scenes.random_scene(rng, self.catalogue, width, height)
                put_scene(batch, row, scene)
                put_conversation(batch, row, self.encoder, conversations.conversation(rng, scene))
            yield batch


class Painter:
    """Draws batches on a device. Sprites are premultiplied: pasting is one multiply-add."""

    def __init__(self, styles, masks, device):
        # [style, pictogram, 4, size, size] and [text, 64, 256], in half precision on a GPU
        self.dtype = torch.half if torch.device(device).type == "cuda" else torch.float
        sprites = torch.from_numpy(np.ascontiguousarray(styles)).to(device)
        self.sprites = sprites.permute(0, 1, 4, 2, 3).to(self.dtype) / 255
        self.masks = torch.from_numpy(np.ascontiguousarray(masks)).to(device)
        self.device = device

    def paste(self, images, rows, sprites, center_x, center_y, width, height):
        ys = torch.arange(images.shape[2], device=self.device) + 0.5
        xs = torch.arange(images.shape[3], device=self.device) + 0.5
        grid_x = (xs[None] - center_x[:, None]) / (width[:, None] / 2)
        grid_y = (ys[None] - center_y[:, None]) / (height[:, None] / 2)
        grid = torch.stack([grid_x[:, None, :].expand(-1, len(ys), -1),
                            grid_y[:, :, None].expand(-1, -1, len(xs))], -1).to(self.dtype)
        drawn = F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros",
                              align_corners=False)
        images[rows] = drawn[:, :3] + images[rows] * (1 - drawn[:, 3:])

    def paint(self, batch, noise):
        """[B, 3, height, width] in 0..1. `noise`: brightness, grain and lost sharpness at random,
        so that the model does not learn this renderer's pixels."""
        height, width = batch.size
        ramp = torch.linspace(0, 1, height, device=self.device).view(1, 1, height, 1)
        top, bottom = batch.background[:, 0, :, None, None], batch.background[:, 1, :, None, None]
        images = (top * (1 - ramp) + bottom * ramp).expand(-1, -1, -1, width)
        images = images.to(self.dtype).contiguous()
        for number in range(scenes.MAX_OBJECTS):
            rows = (batch.objects[:, number, 0] >= 0).nonzero().squeeze(1)
            if len(rows):
                pictogram, style, x, y, size = batch.objects[rows, number].unbind(1)
                sprites = self.sprites[style.long(), pictogram.long()]
                self.paste(images, rows, sprites, x, y, size, size)
        rows = (batch.texts[:, 0] >= 0).nonzero().squeeze(1)
        if len(rows):
            texts = batch.texts[rows]
            alpha = self.masks[texts[:, 0].long()].to(self.dtype)[:, None] / 255
            inked = torch.cat([alpha * texts[:, 4:7, None, None].to(self.dtype), alpha], 1)
            self.paste(images, rows, inked, texts[:, 1], texts[:, 2], texts[:, 3],
                       texts[:, 3] / scenes.TEXT_ASPECT)
        images = images.float()
        return (self.with_noise(images) if noise else images).clamp(0, 1)

    def with_noise(self, images):
        per_picture = (len(images), 1, 1, 1)
        brightness = 1 + 0.08 * (torch.rand(per_picture, device=self.device) - 0.5)
        grain = 0.02 * (torch.rand(per_picture, device=self.device) < 0.5)
        images = images * brightness + grain * torch.randn_like(images)
        blurred = torch.rand(len(images), device=self.device) < 0.2
        if blurred.any():
            smaller = F.interpolate(images[blurred], scale_factor=random.choice([0.5, 0.67, 0.75]),
                                    mode="bilinear", antialias=True)
            images[blurred] = F.interpolate(smaller, size=images.shape[2:], mode="bicubic")
        return images
