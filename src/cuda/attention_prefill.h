// Causal attention of many queries over paged keys: prefill. Decode has kernels of its own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch.h"

namespace glimpse::cuda {

struct AttentionPrefillArguments {
  const void* q = nullptr;     // [rows, num_heads, 128] bf16
  int64_t q_row_stride = 0;    // elements between rows; heads are 128 apart
  const void* keys = nullptr;  // [pages, num_kv_heads, 32, 128] bf16 or e4m3
  const void* values = nullptr;
  const float* key_scales = nullptr;  // [pages, num_kv_heads, 32], with e4m3
  const float* value_scales = nullptr;
  const int32_t* query_begin = nullptr;     // [num_sequences + 1]
  const int32_t* context_length = nullptr;  // [num_sequences]
  const int32_t* page_table = nullptr;      // [num_sequences, page_table_stride]
  int64_t page_table_stride = 0;
  void* out = nullptr;  // as q; may be q
  int64_t out_row_stride = 0;
  int num_sequences = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int max_queries = 0;  // of one sequence
  bool kv_is_f8 = false;
};

/// head_dim 128, rows that start on 16 bytes, num_heads a multiple of num_kv_heads, at most 128
/// heads to a kv head.
[[nodiscard]] bool attention_prefill_supports(const AttentionPrefillArguments& arguments,
                                              int64_t head_dim);
[[nodiscard]] cudaError_t prepare_attention_prefill();
[[nodiscard]] cudaError_t launch_attention_prefill(const AttentionPrefillArguments& arguments,
                                                   const LaunchStream& stream);

}  // namespace glimpse::cuda
