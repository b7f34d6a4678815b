// Activations rounded to FP8 as W8A8 does it: each row's 128 consecutive columns are a group with a
// scale of its own.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "backend/backend.h"
#include "cpu/elements.h"

namespace glimpse::cpu {

/// codes = e4m3(x / scale), scale = max |x| / 448, which is returned. A group of zeros, or of
/// numbers so small that the scale is 0, has codes 0. NaN or infinity in the group make the scale
/// NaN or infinite, so that no product with it passes for a number.
template <typename T>
float quantize_group(const T* x, int64_t count, Float8E4M3* codes) {
  constexpr float kLargestE4M3 = 448.0F;
  uint32_t largest = 0;  // magnitudes order like their bits, NaN above all
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(to_float(x[i])) & 0x7FFFFFFFU);
  }
  const float scale = std::bit_cast<float>(largest) / kLargestE4M3;
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = to_float8_e4m3(scale > 0 ? to_float(x[i]) / scale : 0.0F);
  }
  return scale;
}

/// Row t of x becomes row t of the codes and column t of the scales.
template <typename T>
void quantize_row(const Tensor& x, int64_t t, const QuantizedActivations& quantized) {
  for (int64_t first = 0; first < x.size(1); first += kScaleBlock) {
    row_of<float>(quantized.scales, first / kScaleBlock)[t] =
        quantize_group(row_of<T>(x, t) + first, std::min(kScaleBlock, x.size(1) - first),
                       row_of<Float8E4M3>(quantized.codes, t) + first);
  }
}

}  // namespace glimpse::cpu
