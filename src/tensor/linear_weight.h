// The weight of a linear layer, whatever its storage: y = x W^T + b.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace glimpse {

/// Rows and columns of one FP8 scale block.
inline constexpr int64_t kScaleBlock = 128;

/// Consecutive output rows stored together.
struct LinearPart {
  Tensor weight;  // [out, in] f32, f16, bf16 or f8_e4m3
  Tensor scales;  // [ceil(out / 128), ceil(in / 128)] f32, multiplies; empty unless f8_e4m3
  Tensor bias;    // [out] f32; or empty
};

/// Several parts stand for one matrix with their rows stacked: q, k and v where the file has them.
/// The CPU keeps the mapped parts of the file; CUDA packs them into one. Views only: the weight
/// store or a weights arena owns the memory.
struct LinearWeight {
  std::vector<LinearPart> parts;
  /// Rows were interleaved by Backend::prepare() in an order only that backend knows (gate and up
  /// pairs for a fused product). Such a weight is good for linear_silu_mul() alone.
  bool is_interleaved = false;

  [[nodiscard]] bool empty() const { return parts.empty(); }
  [[nodiscard]] int64_t in_features() const { return parts.front().weight.size(1); }
  [[nodiscard]] int64_t out_features() const {
    int64_t rows = 0;
    for (const LinearPart& part : parts) rows += part.weight.size(0);
    return rows;
  }
};

}  // namespace glimpse
