#include "model/quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/check.h"

namespace glimpse {
namespace {

constexpr float kLargestE4M3 = 448.0F;

template <typename T>
float largest_magnitude(const T* block, int64_t rows, int64_t columns, int64_t stride) {
  float largest = 0;
  bool is_finite = true;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const float magnitude = std::fabs(to_float(block[r * stride + c]));
      is_finite &= magnitude <= 3.4e38F;  // false for NaN as well
      largest = std::max(largest, magnitude);
    }
  }
  return is_finite ? largest : INFINITY;
}

template <typename T>
void quantize_block(const T* block, int64_t rows, int64_t columns, int64_t stride, float scale,
                    std::byte* codes) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const float value = to_float(block[r * stride + c]) / scale;
      codes[r * stride + c] = std::byte{to_float8_e4m3(value).bits};
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
