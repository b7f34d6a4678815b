// Full attention inside segments of rows: the vision tower.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "cuda/launch.h"

namespace glimpse::cuda {

struct AttentionVisionArguments {
  const void* q = nullptr;  // [rows, num_heads, head_dim] bf16; heads are head_dim apart
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t q_row_stride = 0;  // elements between rows
  int64_t k_row_stride = 0;
  int64_t v_row_stride = 0;
  void* out = nullptr;
  int64_t out_row_stride = 0;
  int num_heads = 0;
  int head_dim = 0;
  std::span<const int64_t> segment_begin;  // first row of each segment, and the end
};

/// head_dim 64 or 72, rows that start on 16 bytes.
[[nodiscard]] bool attention_vision_supports(const AttentionVisionArguments& arguments);
[[nodiscard]] cudaError_t prepare_attention_vision();
[[nodiscard]] cudaError_t launch_attention_vision(const AttentionVisionArguments& arguments,
                                                  const LaunchStream& stream);

}  // namespace glimpse::cuda
