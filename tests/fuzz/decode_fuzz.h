// What the fuzz targets of the picture decoders share.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "glimpse/error.h"
#include "image/picture_file.h"

namespace glimpse::fuzz {

/// Runs one decoder. An Error is an expected outcome; a picture must have the size it declares.
inline int decode(RgbImage (*decoder)(const PictureFile&), const uint8_t* data, size_t size) {
  const PictureFile file{.bytes = {reinterpret_cast<const std::byte*>(data), size},
                         .name = "fuzz",
                         .max_pixels = 1 << 20};
  try {
    const RgbImage image = decoder(file);
    const bool sound = image.width > 0 && image.height > 0 &&
                       int64_t{image.width} * image.height <= file.max_pixels &&
                       image.pixels.size() == size_t{3} * image.width * image.height;
    if (!sound) std::abort();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) std::abort();
  }
  return 0;
}

}  // namespace glimpse::fuzz
