// Products of up to 8 activation rows with a weight matrix that is read once: the language head and
// every linear of a decode step that is not fused.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace glimpse::cuda {

/// Most activation rows of one call.
inline constexpr int kGemvRows = 8;

enum class GemvOp : int32_t {
  store,     // out = sum
  add,       // out += sum: the residual connection
  silu_mul,  // out = silu(x weight^T) * (x weight_up^T); no bias
};

struct GemvArguments {
  const void* x = nullptr;          // [rows, columns] bf16
  int64_t x_stride = 0;             // elements between rows
  int rows = 0;                     // 1..kGemvRows
  const void* weight = nullptr;     // [outputs, columns] bf16 or e4m3, contiguous
  const void* weight_up = nullptr;  // the same; silu_mul only
  const float* scales = nullptr;    // [ceil(outputs / 128), ceil(columns / 128)]; e4m3 only
  const float* scales_up = nullptr;
  const float* bias = nullptr;  // [outputs]; may be null
  void* out = nullptr;          // [rows, outputs] bf16 or f32
  int64_t out_stride = 0;       // elements between rows
  int64_t outputs = 0;
  int64_t columns = 0;
  GemvOp op = GemvOp::store;
  bool weight_is_f8 = false;
  bool out_is_f32 = false;
};

/// Whether launch_gemv() takes these arguments: 16-byte aligned weight rows, staged activations
/// within the shared memory of every card.
[[nodiscard]] bool gemv_supports(const GemvArguments& arguments);
/// Once per device, before the first launch.
[[nodiscard]] cudaError_t prepare_gemv();
[[nodiscard]] cudaError_t launch_gemv(const GemvArguments& arguments, int num_multiprocessors,
                                      cudaStream_t stream);

}  // namespace glimpse::cuda
