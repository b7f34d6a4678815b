// A whole decode step through all layers in one launch: a persistent cooperative kernel in which
// every multiprocessor streams its share of each matrix, with the next matrix already on its way
// while the blocks wait for each other.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace glimpse::cuda {

/// Most sequences of one call.
inline constexpr int kDecodeRows = 8;
inline constexpr int kDecodeHeadDim = 128;
/// Most pieces that one sequence's keys are split into.
inline constexpr int kDecodeMaxSplits = 16;
inline constexpr int kDecodeMaxHeads = 64;
inline constexpr int kDecodeMaxLayers = 64;

/// The products of a layer, in the order in which a step computes them.
enum class DecodeProduct : int32_t { qkv, o, gate_up, down };
inline constexpr int kDecodeProducts = 4;

/// One layer's weights and cache, as device pointers.
struct DecodeLayer {
  /// By DecodeProduct, bf16 or e4m3: qkv [(heads + 2 kv_heads) * 128, hidden], o [hidden, heads *
  /// 128], gate [intermediate, hidden], down [hidden, intermediate].
  const void* weights[kDecodeProducts] = {};
  /// e4m3 only: [ceil(rows / 128), ceil(columns / 128)].
  const float* scales[kDecodeProducts] = {};
  const void* up = nullptr;  // [intermediate, hidden]
  const float* up_scales = nullptr;
  const float* input_layernorm = nullptr;           // [hidden]
  const float* post_attention_layernorm = nullptr;  // [hidden]
  const float* q_norm = nullptr;                    // [128]; null in models without it
  const float* k_norm = nullptr;
  void* keys = nullptr;  // [pages, kv_heads, 32, 128] bf16 or e4m3
  void* values = nullptr;
  float* key_scales = nullptr;  // [pages, kv_heads, 32]; e4m3 only
  float* value_scales = nullptr;
};

/// All layers: a kernel argument itself (11 KiB), so that nothing needs an upload.
struct DecodeLayers {
  DecodeLayer layers[kDecodeMaxLayers];
};

struct DecodeArguments {
  int num_layers = 0;
  int rows = 0;  // sequences, one token each: 1..kDecodeRows
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  float epsilon = 1e-6F;
  bool weight_is_f8 = false;
  bool kv_is_f8 = false;
  float* hidden = nullptr;         // [rows, hidden] in and out
  const float* cosines = nullptr;  // [rows, 64]
  const float* sines = nullptr;
  const int32_t* slots = nullptr;           // [rows] where the new key goes; negative: nowhere
  const int32_t* context_length = nullptr;  // [rows] the new token included
  const int32_t* page_table = nullptr;      // [rows, max_pages]
  int max_pages = 0;
  // Set by launch_decode(): the weights' hint for L2, and the most groups (weight_ring.cuh) that a
  // warp copies at once.
  uint64_t weight_policy = 0;
  int unit_groups = 0;
  void* workspace = nullptr;  // decode_workspace_bytes(), zeros before the first use
};

[[nodiscard]] bool decode_supports(const DecodeArguments& arguments, int num_multiprocessors);
/// For any model that decode_supports().
[[nodiscard]] int64_t decode_workspace_bytes();
/// Once per device, before the first launch.
[[nodiscard]] cudaError_t prepare_decode();
/// The device must be able to hold one block per multiprocessor at once (cooperative launch).
[[nodiscard]] cudaError_t launch_decode(const DecodeArguments& arguments,
                                        const DecodeLayers& layers, int num_multiprocessors,
                                        cudaStream_t stream);

}  // namespace glimpse::cuda
