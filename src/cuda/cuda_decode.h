// Whole decode steps in one launch, where the model and the batch allow it.
#pragma once

#include "backend/backend.h"
#include "cuda/cuda_context.h"

namespace glimpse::cuda {

/// Runs all layers for a batch of one token per sequence with the fused decoder. False when this
/// batch or model is not one for it; nothing has happened then.
[[nodiscard]] bool run_decode_layers(const CudaContext& context, const DecoderShape& shape,
                                     std::span<const DecoderLayerWeights> layers,
                                     const DecoderInputs& inputs, const DecoderActivations& act);

}  // namespace glimpse::cuda
