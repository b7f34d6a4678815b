// The product of FP8 activations and FP8 weights (W8A8): out[T, N] = x[T, K] W[N, K]^T, both e4m3,
// x with a scale for each row and 128 columns, W with one per 128x128 block. The tile is chosen
// from numbers alone, so the choice is tested without a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/gemm.h"

namespace glimpse::cuda {

struct W8A8Arguments {
  const void* codes = nullptr;      // [num_rows, in_features] e4m3
  int64_t codes_stride = 0;         // bytes between rows
  const float* x_scales = nullptr;  // [ceil(in / 128), num_rows]
  int64_t x_scale_stride = 0;       // elements between rows
  const void* weight = nullptr;     // [out_features, in_features] e4m3, contiguous
  const void* weight_up = nullptr;  // the same; silu_mul only
  const float* scales = nullptr;    // [ceil(out / 128), ceil(in / 128)]
  const float* scales_up = nullptr;
  const float* bias = nullptr;  // [out_features]; may be null
  void* out = nullptr;          // [num_rows, out_features] bf16 or f32
  int64_t out_stride = 0;       // elements between rows
  int64_t num_rows = 0;
  int64_t out_features = 0;  // of one of the two weights where there are two
  int64_t in_features = 0;
  GemmOp op = GemmOp::store;  // store, add or silu_mul
  bool out_is_f32 = false;
};

/// Block tiles: rows of x by rows of W.
enum class W8A8Tile : int32_t { t16f32, t64f64, t128f128 };

struct W8A8TileShape {
  int tokens, features, threads, stages;
  /// A stage is one scale block of k: 128 bytes of each row.
  [[nodiscard]] int shared_bytes() const { return stages * (tokens + features) * 128; }
};
[[nodiscard]] W8A8TileShape w8a8_tile_shape(W8A8Tile tile);
/// The largest tile that gives every multiprocessor one; few rows take the tile made for them.
[[nodiscard]] W8A8Tile choose_w8a8_tile(const W8A8Arguments& arguments, int num_multiprocessors);

/// Whether launch_w8a8() can run these arguments: rows of both matrices that start on 16 bytes,
/// out_features a multiple of 4, an even stride of x_scales.
[[nodiscard]] bool w8a8_supports(const W8A8Arguments& arguments);
/// Once per device, before the first launch: lets the kernels use their shared memory.
[[nodiscard]] cudaError_t prepare_w8a8();
[[nodiscard]] cudaError_t launch_w8a8(const W8A8Arguments& arguments, W8A8Tile tile,
                                      cudaStream_t stream);

}  // namespace glimpse::cuda
