#pragma once

#include <cstdint>
#include <vector>

namespace glimpse {

/// Decoded pixels: 8-bit RGB, rows from top to bottom, no padding.
struct RgbImage {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3]
};

}  // namespace glimpse
