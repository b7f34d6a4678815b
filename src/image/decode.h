// Picture files to RGB, as Pillow's open, exif_transpose and convert("RGB") give it: alpha is
// dropped, palettes are expanded, the first frame of an animation is taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "image/rgb_image.h"

namespace glimpse {

struct DecodeLimits {
  /// Pictures that declare more pixels are refused before anything is allocated for them.
  int64_t max_pixels = int64_t{1} << 28;
};

/// Recognises the format by content: JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC, AVIF. `name` stands in
/// error messages. Throws Error(bad_picture): not a picture, truncated, too large, damaged.
/// Thread-safe.
[[nodiscard]] RgbImage decode_picture(std::span<const std::byte> file, std::string_view name,
                                      const DecodeLimits& limits = {});

}  // namespace glimpse
