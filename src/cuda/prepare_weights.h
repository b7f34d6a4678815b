// Weights on their way from mapped host memory to the card.
#pragma once

#include <span>

#include "cuda/staging_ring.h"
#include "tensor/arena.h"
#include "tensor/linear_weight.h"

namespace glimpse::cuda {

/// Stacks the rows of `parts` into as few matrices as their scale blocks allow. FP8 stays as it is;
/// BF16, F16 and F32 become BF16 (F32 and F16 lose mantissa bits: a checkpoint of twice the bytes
/// would miss the card, and the kernels multiply bf16 operands anyway). Scales and biases become
/// F32. Rows are contiguous, in their order, and not padded: the kernels take every width.
[[nodiscard]] LinearWeight prepare_linear(std::span<const LinearPart> parts, Arena& arena,
                                          StagingRing& ring);

/// A contiguous host tensor on the card, converted to `dtype`.
[[nodiscard]] Tensor prepare_table(const Tensor& host, DType dtype, Arena& arena,
                                   StagingRing& ring);

}  // namespace glimpse::cuda
