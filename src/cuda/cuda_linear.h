// Which kernel runs a linear layer.
#pragma once

#include "backend/backend.h"
#include "cuda/cuda_context.h"
#include "tensor/linear_weight.h"

namespace glimpse::cuda {

enum class LinearMode : uint8_t { store, add };

/// out (+)= x W^T + bias over all parts of the weight; W8A8 where `quantized` is not empty.
void run_linear(const CudaContext& context, const Tensor& x, const LinearWeight& weight,
                const QuantizedActivations& quantized, LinearMode mode, const Tensor& out);
/// out = silu(x G^T) * (x U^T); scratch [S, 2 * intermediate] may be used or not.
void run_linear_silu_mul(const CudaContext& context, const Tensor& x, const LinearWeight& gate_up,
                         const QuantizedActivations& quantized, const Tensor& scratch,
                         const Tensor& out);
/// out = gelu(x W^T + bias), the tanh form, by one kernel; false where none takes this shape.
[[nodiscard]] bool try_linear_gelu_tanh(const CudaContext& context, const Tensor& x,
                                        const LinearWeight& weight, const Tensor& out);
/// out = x W^T + bias with its first heads rotated, by one kernel; false where none takes this
/// shape.
[[nodiscard]] bool try_linear_rotate(const CudaContext& context, const Tensor& x,
                                     const LinearWeight& weight, const HeadRotation& rotation,
                                     const Tensor& out);
/// out = silu(gate) * up of gate_up [T, 2 * n].
void run_silu_mul(const CudaContext& context, const Tensor& gate_up, const Tensor& out);

}  // namespace glimpse::cuda
