// Launchers of the plain kernels: raw device pointers, sizes and a stream; no Tensor, no checks of
// shapes (Backend's public functions did them). They take every dtype and every shape, so each is
// the fallback and the oracle of the faster kernels beside it. Includes no fmt: nvcc compiles this.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "cuda/launch.h"

namespace glimpse::cuda {

enum class Element : uint8_t { f32, f16, bf16, f8 };

/// Rows whose elements are neighbours, in heads of `head_stride` and tokens of `token_stride`
/// elements: row r is head r % heads of token r / heads. A plain matrix has one head.
struct Rows {
  void* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  int64_t heads = 1;
  Element element = Element::f32;
};

// ---- norm.cu ------------------------------------------------------------------------------------
struct NormArguments {
  Rows x;
  const int32_t* indices = nullptr;  // [num_rows] rows of x; null: as they stand
  const float* weight = nullptr;     // [dim]
  const float* bias = nullptr;       // [dim]; null: RMS norm
  float epsilon = 0;
  Rows out;
  int64_t num_rows = 0;
  int64_t dim = 0;
};
[[nodiscard]] cudaError_t launch_norm(const NormArguments& arguments, const LaunchStream& stream);

// ---- elementwise.cu -----------------------------------------------------------------------------
enum class Elementwise : uint8_t {
  convert,    // out = a
  add,        // out = a + b
  gelu_tanh,  // out = gelu(a)
  gelu_erf,
  silu_mul,  // out = silu(a) * b
};
struct ElementwiseArguments {
  Elementwise operation = Elementwise::convert;
  Rows a;
  Rows b;  // add and silu_mul only; of a's element
  Rows out;
  int64_t num_rows = 0;
  int64_t dim = 0;
};
[[nodiscard]] cudaError_t launch_elementwise(const ElementwiseArguments& arguments,
                                             const LaunchStream& stream);

// ---- gather.cu ----------------------------------------------------------------------------------
enum class RowMove : uint8_t {
  gather,   // out[i] = from[indices[i]]
  scatter,  // out[indices[i]] = from[i]
  add,      // out[indices[i]] += from[i]
};
struct RowMoveArguments {
  RowMove move = RowMove::gather;
  Rows from;
  const int32_t* indices = nullptr;  // [count]
  Rows out;
  int64_t count = 0;
  int64_t dim = 0;
};
[[nodiscard]] cudaError_t launch_move_rows(const RowMoveArguments& arguments,
                                           const LaunchStream& stream);

struct BlendArguments {
  Rows table;
  const int32_t* indices = nullptr;  // [count, 4]
  const float* weights = nullptr;    // [count, 4]
  Rows out;                          // out[i] += the blend
  int64_t count = 0;
  int64_t dim = 0;
};
[[nodiscard]] cudaError_t launch_blend_rows(const BlendArguments& arguments,
                                            const LaunchStream& stream);

// ---- patches.cu ---------------------------------------------------------------------------------
struct PatchArguments {
  const uint8_t* pixels = nullptr;  // [num_frames, height, width, 3]
  int64_t num_frames = 0;
  int64_t height = 0;
  int64_t width = 0;
  const float* table = nullptr;  // [3, 256]
  int64_t side = 0;              // as in PatchOrder
  int64_t merge = 0;
  int64_t frames = 0;
  int64_t first = 0;
  Rows out;  // [count, 3 * frames * side * side]
  int64_t count = 0;
};
[[nodiscard]] cudaError_t launch_cut_patches(const PatchArguments& arguments,
                                             const LaunchStream& stream);

// ---- rotary.cu ----------------------------------------------------------------------------------
struct RotaryTableArguments {
  const int32_t* positions = nullptr;  // [axes, tokens]
  int64_t axis_stride = 0;
  const float* inverse_frequencies = nullptr;  // [half]
  const int32_t* axes = nullptr;               // [half]
  float* cosines = nullptr;                    // [tokens, half]
  float* sines = nullptr;                      // [tokens, half]
  int64_t cosine_stride = 0;
  int64_t sine_stride = 0;
  int64_t tokens = 0;
  int64_t half = 0;
};
[[nodiscard]] cudaError_t launch_rotary_table(const RotaryTableArguments& arguments,
                                              const LaunchStream& stream);

struct RotateArguments {
  Rows x;  // [tokens, heads, 2 * half]
  const float* cosines = nullptr;
  const float* sines = nullptr;
  int64_t cosine_stride = 0;
  int64_t sine_stride = 0;
  Rows out;
  int64_t tokens = 0;
  int64_t half = 0;
};
[[nodiscard]] cudaError_t launch_rotate(const RotateArguments& arguments,
                                        const LaunchStream& stream);

// ---- step.cu ------------------------------------------------------------------------------------
struct BeginStepArguments {
  Rows table;
  const int32_t* ids = nullptr;     // [tokens]; -1 - i: chosen[i]
  const int32_t* chosen = nullptr;  // may be null where no id is negative
  Rows hidden;                      // f32
  int64_t dim = 0;
  RotaryTableArguments rotary;
};
[[nodiscard]] cudaError_t launch_begin_step(const BeginStepArguments& arguments,
                                            cudaStream_t stream);

// ---- kv_cache.cu --------------------------------------------------------------------------------
/// One layer's pages: keys and values [pages, kv_heads, page_tokens, head_dim], contiguous; scales
/// [pages, kv_heads, page_tokens], with f8 only.
struct KvPages {
  void* keys = nullptr;
  void* values = nullptr;
  float* key_scales = nullptr;
  float* value_scales = nullptr;
  Element element = Element::f32;
  int64_t kv_heads = 0;
  int64_t page_tokens = 0;
  int64_t head_dim = 0;
};
struct StoreKvArguments {
  Rows k;  // [tokens, kv_heads, head_dim]
  Rows v;
  const int32_t* slots = nullptr;  // [tokens]
  KvPages kv;
  int64_t tokens = 0;
};
[[nodiscard]] cudaError_t launch_store_kv(const StoreKvArguments& arguments,
                                          const LaunchStream& stream);

// ---- attention_plain.cu -------------------------------------------------------------------------
/// Largest head_dim of the plain kernels.
inline constexpr int64_t kMaxHeadDim = 256;

struct PagedAttentionArguments {
  Rows q;  // [tokens, heads, head_dim]
  KvPages kv;
  const int32_t* query_begin = nullptr;     // [num_sequences + 1]
  const int32_t* context_length = nullptr;  // [num_sequences]
  const int32_t* page_table = nullptr;      // [num_sequences, page_table_stride]
  int64_t page_table_stride = 0;
  int64_t num_sequences = 0;
  Rows out;
  int64_t tokens = 0;
};
[[nodiscard]] cudaError_t launch_attend_paged_plain(const PagedAttentionArguments& arguments,
                                                    cudaStream_t stream);

struct PackedAttentionArguments {
  Rows q;  // [tokens, heads, head_dim]
  Rows k;
  Rows v;
  Rows out;
  std::span<const int64_t> segment_begin;  // host numbers: first row of each segment, and the end
  int64_t head_dim = 0;
};
[[nodiscard]] cudaError_t launch_attend_packed_plain(const PackedAttentionArguments& arguments,
                                                     cudaStream_t stream);

// ---- linear_plain.cu ----------------------------------------------------------------------------
struct LinearArguments {
  Rows x;                           // [tokens, in]; f8 only with scales of its own and an f8 weight
  const float* x_scales = nullptr;  // [ceil(in / 128), tokens]
  int64_t x_scale_stride = 0;       // elements between rows
  const void* weight = nullptr;     // [out, in], contiguous
  Element weight_element = Element::bf16;
  const float* scales = nullptr;  // [ceil(out / 128), ceil(in / 128)]; f8 only
  const float* bias = nullptr;    // [out]; may be null
  Rows out;                       // [tokens, out]
  bool adds_to_out = false;
  int64_t tokens = 0;
  int64_t in_features = 0;
  int64_t out_features = 0;
};
[[nodiscard]] cudaError_t launch_linear_plain(const LinearArguments& arguments,
                                              cudaStream_t stream);

// ---- quantize.cu --------------------------------------------------------------------------------
struct QuantizeArguments {
  Rows x;                    // [num_rows, dim] f32 or bf16
  void* codes = nullptr;     // [num_rows, dim] e4m3
  int64_t codes_stride = 0;  // bytes between rows
  float* scales = nullptr;   // [ceil(dim / 128), num_rows]
  int64_t scale_stride = 0;  // elements between rows
  int64_t num_rows = 0;
  int64_t dim = 0;
};
[[nodiscard]] cudaError_t launch_quantize(const QuantizeArguments& arguments, cudaStream_t stream);

// ---- sampling.cu --------------------------------------------------------------------------------
/// Rows of one launch: the workspace has room for so many.
inline constexpr int64_t kMaxSamplingRows = 128;
[[nodiscard]] int64_t sampling_workspace_bytes();

struct SampleArguments {
  const float* logits = nullptr;  // [rows, vocab]
  int64_t logits_stride = 0;
  int64_t rows = 0;
  int64_t vocab = 0;
  const float* temperature = nullptr;  // [rows], as are those below
  const int32_t* top_k = nullptr;
  const float* top_p = nullptr;
  const float* min_p = nullptr;
  const float* uniform = nullptr;
  const float* repetition_penalty = nullptr;
  const float* presence_penalty = nullptr;
  const float* frequency_penalty = nullptr;
  const int32_t* counts_row = nullptr;
  const uint16_t* token_counts = nullptr;  // [lines, vocab]
  int64_t counts_stride = 0;
  const int32_t* mask_row = nullptr;
  const uint32_t* allowed = nullptr;  // [lines, ceil(vocab / 32)]
  int64_t allowed_stride = 0;
  bool all_greedy = false;
  int32_t* ids = nullptr;  // [rows]
  float* log_probs = nullptr;
  int32_t* reported_ids = nullptr;  // may be null
  void* workspace = nullptr;        // sampling_workspace_bytes(), zeros before the first use
};
[[nodiscard]] cudaError_t launch_sample(const SampleArguments& arguments, cudaStream_t stream);

struct TopLogProbsArguments {
  const float* logits = nullptr;  // [rows, vocab]
  int64_t logits_stride = 0;
  int64_t rows = 0;
  int64_t vocab = 0;
  int64_t count = 0;       // most likely tokens wanted
  int32_t* ids = nullptr;  // [rows, count]
  float* log_probs = nullptr;
  int64_t ids_stride = 0;
  int64_t log_probs_stride = 0;
};
[[nodiscard]] cudaError_t launch_top_log_probs(const TopLogProbsArguments& arguments,
                                               cudaStream_t stream);

struct CountTokensArguments {
  const int32_t* ids = nullptr;   // [rows]
  const int32_t* line = nullptr;  // [rows]
  uint16_t* counts = nullptr;     // [lines, vocab]
  int64_t counts_stride = 0;
  int64_t rows = 0;
};
[[nodiscard]] cudaError_t launch_count_tokens(const CountTokensArguments& arguments,
                                              cudaStream_t stream);

}  // namespace glimpse::cuda
