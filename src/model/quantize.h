// Block FP8 of a 16- or 32-bit weight while loading: a 4B checkpoint in BF16 does not fit a card of
// 8 GB, the same in FP8 does. Blocks are 128 x 128, as in Qwen's own FP8 releases.
#pragma once

#include <cstddef>
#include <span>

#include "base/thread_pool.h"
#include "tensor/linear_weight.h"

namespace glimpse {

/// Each block of `source` is divided by its scale amax / 448 and rounded to nearest e4m3; a block
/// of zeros has scale 1. Values the format cannot hold are refused: throws Error(bad_model) naming
/// `name` when `source` holds NaN or infinity.
///   source [out, in] f32, f16 or bf16 on the host   codes [out * in]
///   scales [ceil(out / 128) * ceil(in / 128)]
void quantize_blocks(const Tensor& source, std::string_view name, ThreadPool& pool,
                     std::span<std::byte> codes, std::span<float> scales);

}  // namespace glimpse
