#include "model/quantize.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace glimpse {
namespace {

constexpr float kLargestE4M3 = 448.0F;

// The loops below have no branches, so that the compiler works on several values at once.

// Largest magnitude; infinity or NaN when there is one. As integers, magnitudes of floats are
// ordered like the floats, with infinity and NaN above all.
template <typename T>
float largest_magnitude(const T* block, int64_t rows, int64_t columns, int64_t stride) {
  int32_t largest = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const float value = to_float(block[r * stride + c]);
      largest = std::max(largest, std::bit_cast<int32_t>(value) & 0x7FFFFFFF);
    }
  }
  return std::bit_cast<float>(largest);
}

// to_float8_e4m3() for finite values: both of its cases are computed and one is taken.
uint8_t code_of(float value) {
  const auto bits = std::bit_cast<int32_t>(value);
  const int32_t magnitude = bits & 0x7FFFFFFF;
  const float shifted = std::bit_cast<float>(magnitude) + 0x1p14F;  // rounds to units of 2^-9
  const int32_t subnormal = std::bit_cast<int32_t>(shifted) - 0x46800000;
  const int32_t rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1);
  const int32_t normal = (rounded - 0x3C000000) >> 20;
  const int32_t is_subnormal = (magnitude - 0x3C800000) >> 31;  // all bits or none
  const int32_t code = std::min((subnormal & is_subnormal) | (normal & ~is_subnormal), 0x7E);
  return static_cast<uint8_t>(code | ((bits >> 24) & 0x80));
}

template <typename T>
void quantize_block(const T* block, int64_t rows, int64_t columns, int64_t stride, float scale,
                    std::byte* codes) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      codes[r * stride + c] = std::byte{code_of(to_float(block[r * stride + c]) / scale)};
    }
  }
}

}  // namespace

void quantize_blocks(const Tensor& source, std::string_view name, ThreadPool& pool,
                     std::span<std::byte> codes, std::span<float> scales) {
  const int64_t out = source.size(0);
  const int64_t in = source.size(1);
  const int64_t block_rows = (out + kScaleBlock - 1) / kScaleBlock;
  const int64_t block_columns = (in + kScaleBlock - 1) / kScaleBlock;
  check(source.is_contiguous() && codes.size() == static_cast<size_t>(out * in) &&
            scales.size() == static_cast<size_t>(block_rows * block_columns),
        "quantize_blocks: sizes do not match");
  std::atomic<bool> is_finite = true;
  dispatch_weight(source.dtype(), [&]<typename T>() {
    const T* weights = source.data<T>();
    pool.parallel_for(block_rows, 1, [&](int64_t first, int64_t last) {
      for (int64_t block = first * block_columns; block < last * block_columns; ++block) {
        const int64_t row = block / block_columns * kScaleBlock;
        const int64_t column = block % block_columns * kScaleBlock;
        const int64_t rows = std::min(kScaleBlock, out - row);
        const int64_t columns = std::min(kScaleBlock, in - column);
        const int64_t begin = row * in + column;
        const float largest = largest_magnitude(weights + begin, rows, columns, in);
        if (!std::isfinite(largest)) is_finite = false;
        // A block of zeros, or one so small that its scale underflows, keeps scale 1: all zeros.
        const float quotient = largest / kLargestE4M3;
        const float scale = quotient > 0 && std::isfinite(quotient) ? quotient : 1.0F;
        scales[static_cast<size_t>(block)] = scale;
        quantize_block(weights + begin, rows, columns, in, scale, codes.data() + begin);
      }
    });
  });
  if (!is_finite) {
    throw Error(ErrorCode::bad_model,
                fmt::format("tensor '{}' holds NaN or infinity and cannot be stored as FP8", name),
                "the checkpoint is damaged: download it again");
  }
}

}  // namespace glimpse
