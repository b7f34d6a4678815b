// Blocks: (row tile of a segment, head). K and V tiles go around three stages, of which the first
// holds the queries until they are in registers: one is multiplied, the next is complete because
// the pipeline of scores is half a tile ahead, the third is being copied. Moves each q row once,
// and K and V of a head once per 128 rows (from L2).
#include "cuda/attention_vision.h"

#include <algorithm>
#include <type_traits>

#include "cuda/attention_tile.cuh"
#include "cuda/launch.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kKeys = 64;  // of a tile
constexpr int kStages = 3;
/// Segments of one launch; longer lists take several launches.
constexpr int kMaxSegments = 64;

struct VisionParameters {
  const __nv_bfloat16* q;
  const __nv_bfloat16* k;
  const __nv_bfloat16* v;
  __nv_bfloat16* out;
  int64_t q_row_stride, k_row_stride, v_row_stride, out_row_stride;
  float scale;
  int num_segments;
  int row_begin[kMaxSegments + 1];
  int tile_begin[kMaxSegments + 1];
};

template <int kHeadDim>
constexpr int vision_shared_bytes() {
  return kStages * 2 * AttentionTile<kHeadDim, kKeys>::kTileBytes;
}

/// This thread's chunk of the rows of one matrix, and its row among those copied at once.
template <int kHeadDim>
struct RowCopy {
  using Tile = AttentionTile<kHeadDim, kKeys>;
  static constexpr int kRowsPerPass = kAttentionThreads / Tile::kChunks;

  __device__ static int chunk() { return static_cast<int>(threadIdx.x) % Tile::kChunks; }
  __device__ static int row() { return static_cast<int>(threadIdx.x) / Tile::kChunks; }

  /// Copies kRows rows; `from` is this thread's chunk of the first, rows from `num_valid` on become
  /// zeros.
  template <int kRows>
  __device__ static void copy(uint32_t to, const __nv_bfloat16* from, int64_t stride,
                              int num_valid) {
    constexpr int kPasses = (kRows + kRowsPerPass - 1) / kRowsPerPass;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int in_tile = row() + pass * kRowsPerPass;
      const bool is_idle =
          kAttentionThreads % Tile::kChunks != 0 && (row() >= kRowsPerPass || in_tile >= kRows);
      if (is_idle) continue;
      copy_async(to + Tile::position(in_tile, chunk()), from + pass * kRowsPerPass * stride,
                 in_tile < num_valid && chunk() < Tile::kUsedChunks);
    }
  }
};

template <int kHeadDim>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attend_segments(const __grid_constant__ VisionParameters p) {
  using Tile = AttentionTile<kHeadDim, kKeys / 2>;  // half a tile at a time
  constexpr int kHalfBytes = Tile::kTileBytes;
  constexpr int kStageBytes = 4 * kHalfBytes;  // K, then V
  static_assert(vision_shared_bytes<kHeadDim>() <= 99 * 1024);
  static_assert(Tile::kQueryBytes <= kStageBytes);
  wait_for_earlier_kernels();
  extern __shared__ __align__(128) uint8_t shared_memory[];
  const uint32_t stages = shared_address(shared_memory);

  int segment = 0;
  while (static_cast<int>(blockIdx.x) >= p.tile_begin[segment + 1]) ++segment;
  const int begin = p.row_begin[segment];
  const int end = p.row_begin[segment + 1];
  const int row = begin + (static_cast<int>(blockIdx.x) - p.tile_begin[segment]) * kAttentionRows;
  const int head = static_cast<int>(blockIdx.y) * kHeadDim;

  using Copy = RowCopy<kHeadDim>;
  const auto chunk_of = [&](const __nv_bfloat16* matrix, int64_t stride, int first) {
    return matrix + (first + Copy::row()) * stride + head + Copy::chunk() * 8;
  };
  const __nv_bfloat16* k = chunk_of(p.k, p.k_row_stride, begin);
  const __nv_bfloat16* v = chunk_of(p.v, p.v_row_stride, begin);
  int rows_to_copy = end - begin;
  const auto copy_tile = [&](int stage) {
    const uint32_t to = stages + stage * kStageBytes;
    if (rows_to_copy > 0) {
      Copy::template copy<kKeys>(to, k, p.k_row_stride, rows_to_copy);
      Copy::template copy<kKeys>(to + 2 * kHalfBytes, v, p.v_row_stride, rows_to_copy);
    }
    k += kKeys * p.k_row_stride;
    v += kKeys * p.v_row_stride;
    rows_to_copy -= kKeys;
    copy_async_commit();
  };
  Copy::template copy<kAttentionRows>(stages, chunk_of(p.q, p.q_row_stride, row), p.q_row_stride,
                                      end - row);
  copy_async_commit();
  copy_tile(1);
  copy_tile(2);

  Tile attention(p.scale);
  copy_async_wait<1>();
  __syncthreads();
  attention.load_queries(stages);
  typename Tile::Scores first;
  typename Tile::Scores second;
  int left = end - begin;
  const auto limit = [&](int) { return left; };
  const auto limit_of_second = [&](int) { return left - kKeys / 2; };
  attention.begin(stages + kStageBytes, left < kKeys / 2, limit, first);
  int stage = 1;
#pragma unroll 1
  while (true) {
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
    const uint32_t keys = stages + stage * kStageBytes;
    const uint32_t values = keys + 2 * kHalfBytes;
    copy_async_wait<0>();
    __syncthreads();
    copy_tile(next_stage + 1 == kStages ? 0 : next_stage + 1);
    attention.advance(values, first, keys + kHalfBytes, left < kKeys, limit_of_second, second);
    left -= kKeys;
    if (left <= 0) {
      attention.finish(values + kHalfBytes, second);
      break;
    }
    attention.advance(values + kHalfBytes, second, stages + next_stage * kStageBytes,
                      left < kKeys / 2, limit, first);
    stage = next_stage;
  }
  let_next_kernel_start();
  attention.store([&](int r) -> __nv_bfloat16* {
    const int at = row + attention.row_of(r);
    return at < end ? p.out + at * p.out_row_stride + head : nullptr;
  });
}

template <typename Body>
cudaError_t dispatch_head_dim(int head_dim, Body&& body) {
  if (head_dim == 64) return body(std::integral_constant<int, 64>());
  if (head_dim == 72) return body(std::integral_constant<int, 72>());
  return cudaErrorInvalidValue;
}

}  // namespace

bool attention_vision_supports(const AttentionVisionArguments& a) {
  const auto good = [](const void* pointer, int64_t stride) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 8 == 0;
  };
  return (a.head_dim == 64 || a.head_dim == 72) && good(a.q, a.q_row_stride) &&
         good(a.k, a.k_row_stride) && good(a.v, a.v_row_stride) && good(a.out, a.out_row_stride);
}

cudaError_t prepare_attention_vision() {
  for (const int head_dim : {64, 72}) {
    const cudaError_t error = dispatch_head_dim(head_dim, [](auto kHeadDim) {
      return cudaFuncSetAttribute(attend_segments<kHeadDim>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  vision_shared_bytes<kHeadDim>());
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_attention_vision(const AttentionVisionArguments& a, const LaunchStream& stream) {
  VisionParameters p{};
  p.q = static_cast<const __nv_bfloat16*>(a.q);
  p.k = static_cast<const __nv_bfloat16*>(a.k);
  p.v = static_cast<const __nv_bfloat16*>(a.v);
  p.out = static_cast<__nv_bfloat16*>(a.out);
  p.q_row_stride = a.q_row_stride;
  p.k_row_stride = a.k_row_stride;
  p.v_row_stride = a.v_row_stride;
  p.out_row_stride = a.out_row_stride;
  p.scale = 1.0F / std::sqrt(static_cast<float>(a.head_dim));
  const int num_segments = static_cast<int>(a.segment_begin.size()) - 1;
  for (int first = 0; first < num_segments; first += kMaxSegments) {
    p.num_segments = std::min(kMaxSegments, num_segments - first);
    p.tile_begin[0] = 0;
    for (int s = 0; s < p.num_segments; ++s) {
      p.row_begin[s] = static_cast<int>(a.segment_begin[static_cast<size_t>(first + s)]);
      p.row_begin[s + 1] = static_cast<int>(a.segment_begin[static_cast<size_t>(first + s + 1)]);
      const int rows = p.row_begin[s + 1] - p.row_begin[s];
      p.tile_begin[s + 1] = p.tile_begin[s] + (rows + kAttentionRows - 1) / kAttentionRows;
    }
    const int tiles = p.tile_begin[p.num_segments];
    if (tiles == 0) continue;
    const cudaError_t error = dispatch_head_dim(a.head_dim, [&](auto kHeadDim) {
      const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(a.num_heads));
      return launch_kernel(attend_segments<kHeadDim>,
                           {grid, kAttentionThreads, vision_shared_bytes<kHeadDim>()}, stream, p);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace glimpse::cuda
