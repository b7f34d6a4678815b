// The tensor-core product behind linear(), linear_add() and linear_silu_mul() for more than a few
// rows: out[T, N] = x[T, K] W[N, K]^T in bf16 with f32 sums, W stored as bf16 or as e4m3 with one
// scale per 128x128 block. plan_gemm() chooses the launch from numbers alone, so it is tested
// without a GPU; launch_gemm() runs what it chose.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch.h"

namespace glimpse::cuda {

/// What happens to the f32 sums (bias added) before they are stored.
enum class GemmOp : int32_t {
  store,      // out = sum
  add,        // out += sum: the residual connection
  gelu_tanh,  // out = gelu(sum), the tanh form
  silu_mul,   // out = silu(x weight^T) * (x weight_up^T); no bias
  rotate,     // out = sum, its first heads of kRotatedHeadDim features turned; all bf16
};

/// Block tiles of the kernel: rows of x by rows of W ("features").
enum class GemmTile : int32_t { t16f256, t32f256, t64f128, t96f128, t128f128, t128f256 };
inline constexpr int kNumGemmTiles = 6;

/// Width of the heads that GemmOp::rotate turns: a warp has both halves of one.
inline constexpr int64_t kRotatedHeadDim = 64;

struct GemmArguments {
  const void* x = nullptr;          // [num_rows, in_features] bf16
  int64_t x_stride = 0;             // elements between rows
  const void* weight = nullptr;     // [out_features, in_features] bf16 or e4m3, contiguous
  const void* weight_up = nullptr;  // the same; silu_mul only
  const float* scales = nullptr;    // [ceil(out / 128), ceil(in / 128)]; e4m3 only
  const float* scales_up = nullptr;
  const float* bias = nullptr;     // [out_features]; may be null
  const float* cosines = nullptr;  // [num_rows, kRotatedHeadDim / 2]; rotate only
  const float* sines = nullptr;
  int64_t rotated_features = 0;  // a multiple of kRotatedHeadDim
  void* out = nullptr;           // [num_rows, out_features] bf16 or f32
  int64_t out_stride = 0;        // elements between rows
  int64_t num_rows = 0;
  int64_t out_features = 0;  // of one of the two weights where there are two
  int64_t in_features = 0;
  GemmOp op = GemmOp::store;
  bool weight_is_f8 = false;
  bool out_is_f32 = false;
  void* workspace = nullptr;  // gemm_workspace_bytes() on the device, zeros before the first use
};

/// What plan_gemm() needs to know of a card.
struct GemmDevice {
  int num_multiprocessors = 0;
  int shared_bytes_per_multiprocessor = 0;
};

/// How one product is spread over the card. Each block takes up to `full_waves` whole tiles. The k
/// steps of the tiles that are left form one line, which `shared_blocks` of the blocks share
/// equally (stream-K); the last block to finish a shared tile adds the parts in a fixed order, so
/// results do not depend on timing.
struct GemmPlan {
  GemmTile tile = GemmTile::t128f256;
  int num_blocks = 0;
  int token_tiles = 0;
  int feature_tiles = 0;
  int k_steps = 0;     // per tile
  int full_waves = 0;  // whole tiles that each block takes first
  int shared_blocks = 0;
};

struct GemmTileShape {
  int tokens, features, threads, stages, k_step, blocks_per_multiprocessor;
  int weight_row_bytes;  // a stage
  [[nodiscard]] int shared_bytes() const {
    return stages * (tokens * k_step * 2 + features * weight_row_bytes);
  }
};
[[nodiscard]] GemmTileShape gemm_tile_shape(GemmTile tile, bool weight_is_f8);

/// Whether launch_gemm() can run these arguments: rows that start on 16 bytes, in_features a
/// multiple of 8 (of 16 for e4m3), out_features a multiple of 4.
[[nodiscard]] bool gemm_supports(const GemmArguments& arguments);
[[nodiscard]] GemmPlan plan_gemm(const GemmArguments& arguments, const GemmDevice& device);
/// The plan for a given tile, with or without tiles that several blocks share; plan_gemm() picks
/// among these.
[[nodiscard]] GemmPlan plan_gemm_tile(const GemmArguments& arguments, const GemmDevice& device,
                                      GemmTile tile, bool may_share = true);
/// The workspace begins with one counter per shared tile, of which there are fewer than blocks.
inline constexpr int64_t kGemmCounterBytes = 16384;
/// Room for the parts of shared tiles and their counters, enough for every plan of this device.
[[nodiscard]] int64_t gemm_workspace_bytes(const GemmDevice& device);

/// Once per device, before the first launch: lets the kernels use their shared memory.
[[nodiscard]] cudaError_t prepare_gemm();
[[nodiscard]] cudaError_t launch_gemm(const GemmArguments& arguments, const GemmPlan& plan,
                                      const LaunchStream& stream);

}  // namespace glimpse::cuda
