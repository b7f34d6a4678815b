#!/usr/bin/env python3
"""Makes the HEIC and AVIF files of this folder, and beside each a PNG of what Pillow shows for it.

Needs Pillow 11.2 or newer, pillow_heif and NumPy. The pictures are made so that every version of the
decoders agrees: lossless where the codec can be, and gray where the colour planes are halved,
because versions differ in how they enlarge those.
"""
import pathlib

import numpy as np
import pillow_heif
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent
pillow_heif.register_heif_opener()


def colors(width: int, height: int) -> Image.Image:
    """Two gradients and a checkerboard: no two orientations look alike."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // (width - 1), y * 255 // (height - 1), (x // 8 + y // 8) % 2 * 200]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def main() -> None:
    lossless = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    colors(72, 56).save(HERE / "lossless.heic", **lossless)
    gray = colors(72, 56).convert("L")
    # An EXIF orientation in the picture's own info becomes the container's turn or mirror; one that
    # is only passed to save() stays EXIF's alone, which says nothing about these files.
    for orientation in (6, 7):
        picture = colors(72, 56)
        picture.info["exif"] = turned(orientation).tobytes()
        picture.save(HERE / f"turned{orientation}.heic", **lossless)
    colors(72, 56).save(HERE / "exif6_only.heic", exif=turned(6), **lossless)
    gray.convert("RGB").save(HERE / "gray420.heic", quality=90, chroma=420)
    gray.convert("RGB").save(HERE / "gray420.avif", quality=90, subsampling="4:2:0")
    colors(72, 56).save(HERE / "fine444.avif", quality=100, subsampling="4:4:4")
    gray.save(HERE / "turned8.avif", quality=100, subsampling="4:0:0", exif=turned(8))
    for path in sorted([*HERE.glob("*.heic"), *HERE.glob("*.avif")]):
        shown = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        shown.save(HERE / f"{path.name}.png", optimize=True)


if __name__ == "__main__":
    main()
