// The orientation a camera wrote beside the pixels (EXIF tag 0x0112, or XMP's tiff:Orientation
// where EXIF has none), and turning the picture upright, as Pillow's exif_transpose does.
#pragma once

#include <cstddef>
#include <span>

#include "image/rgb_image.h"

namespace glimpse {

/// The orientation tag of the first directory of an EXIF block, with or without its "Exif\0\0"
/// head. 0 when there is none or the block is damaged: orientation is never worth an error.
[[nodiscard]] int exif_orientation(std::span<const std::byte> exif);

/// tiff:Orientation of an XMP packet, 0 when there is none.
[[nodiscard]] int xmp_orientation(std::span<const std::byte> xmp);

/// EXIF's if it has the tag, else XMP's, else 1.
[[nodiscard]] int orientation(std::span<const std::byte> exif, std::span<const std::byte> xmp);

/// Upright pixels: 2 mirrors x, 3 turns by 180 degrees, 4 mirrors y, 5 transposes, 6 turns right,
/// 7 transposes along the other diagonal, 8 turns left; anything else changes nothing.
[[nodiscard]] RgbImage make_upright(RgbImage image, int orientation);

}  // namespace glimpse
