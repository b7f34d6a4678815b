// The two inner loops of resampling, in SIMD chosen at run time. Both are exact integer arithmetic:
// every instruction set gives the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace glimpse {

/// Which source samples make each output sample of one axis, and with what fixed-point weights.
struct AxisWeights {
  int precision = 0;             // bits behind the binary point
  int stride = 0;                // weights an output, a multiple of 4, zero behind the last
  std::vector<int> first;        // [outputs]
  std::vector<int> count;        // [outputs]
  std::vector<int16_t> weights;  // [outputs, stride]

  [[nodiscard]] const int16_t* of(int output) const {
    return &weights[static_cast<size_t>(output) * stride];
  }
};

/// One row of RGB pixels to `width` pixels: out [width, 3]. `row` is readable for
/// kRowPadding bytes behind its last pixel, whatever stands there.
inline constexpr size_t kRowPadding = 16;
void resize_row(const uint8_t* row, const AxisWeights& axis, int width, uint8_t* out);

/// Output row `output` of one column pass: the weighted sum of axis.count rows of `row_bytes`
/// bytes each, the first of them at `rows`.
void blend_rows(const uint8_t* rows, size_t row_bytes, const AxisWeights& axis, int output,
                uint8_t* out);

}  // namespace glimpse
