// One block per multiprocessor stages the activation rows in shared memory and streams its share of
// the weight tiles past them (weight_stream.cuh). Moves outputs * columns weight bytes once; the
// activations come from the L2 cache.
#include "cuda/gemv.h"

#include <algorithm>

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {
namespace {

// What a block may use on every card is 99 KiB; the sums of a pass take 20 KiB of it.
constexpr int kMaxStagedBytes = 77 * 1024;
// One block per multiprocessor. Two of half the size took 5 % longer on an H200.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kStages = 3;
using Scratch = StreamScratch<kWarps, kStreamRows>;

int staged_stride_of(const GemvArguments& a) {
  return a.weight_is_f8 ? staged_stride<Fp8>(a.columns) : staged_stride<__nv_bfloat16>(a.columns);
}

int blocks_of(int64_t columns) {
  return static_cast<int>((columns + kBlockColumns - 1) / kBlockColumns);
}

/// The rows, and behind them the scales of their blocks.
int staged_bytes(const GemvArguments& a) {
  return a.rows * staged_stride_of(a) * static_cast<int>(sizeof(uint16_t)) +
         (a.weight_is_f8 ? blocks_of(a.columns) * kStreamRows * static_cast<int>(sizeof(float))
                         : 0);
}

__device__ float silu(float x) {
  return x / (1.0F + __expf(-x));
}

template <typename W>
__device__ void stage_rows(const GemvArguments& a, const Staged& staged) {
  const auto* x = static_cast<const __nv_bfloat16*>(a.x);
  const int columns = static_cast<int>(a.columns);
  const int blocks = (columns + kBlockColumns - 1) / kBlockColumns;
  for (int row = 0; row < a.rows; ++row) {
    for (int block = static_cast<int>(threadIdx.x) / 32; block < blocks; block += kWarps) {
      const int column = block * kBlockColumns + static_cast<int>(threadIdx.x) % 32 * 4;
      float four[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four[i] = column + i < columns ? __bfloat162float(x[row * a.x_stride + column + i]) : 0.0F;
      }
      float scale = 0;
      const uint2 words = staged_words<W>(four, scale);
      put_staged<W>(staged, row, block, words, scale);
    }
  }
}

/// What the threads of a block look up, rather than keep in registers.
struct BlockPlan {
  TileRows rows;
  PassPlan pass;
};

template <typename W, typename Out>
__global__ void __launch_bounds__(kThreads, 1)
    stream_weights(const __grid_constant__ GemvArguments a, int stride) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ BlockPlan block;
  auto& scratch = *reinterpret_cast<Scratch*>(shared);
  auto* values = reinterpret_cast<uint16_t*>(shared + sizeof(Scratch));
  const Staged staged{values, reinterpret_cast<float*>(values + a.rows * stride), stride};
  const bool paired = a.op == GemvOp::silu_mul;
  const int outputs = static_cast<int>(a.outputs);
  const int row_bytes = static_cast<int>(a.columns) * static_cast<int>(sizeof(W));
  const int scale_columns = (static_cast<int>(a.columns) + kBlockColumns - 1) / kBlockColumns;
  if (threadIdx.x == 0) {
    block.rows = TileRows::deal(outputs, paired);
    block.pass = PassPlan::make(block.rows.tiles, row_bytes, kWarps);
  }
  __syncthreads();
  int first_tile = 0;
  const auto locate = [&](int tile) {
    return lane_rows<W>(block.rows, paired, first_tile + tile, a.weight,
                        paired ? a.weight_up : a.weight, a.scales, paired ? a.scales_up : a.scales,
                        row_bytes, scale_columns);
  };
  auto* out = static_cast<Out*>(a.out);
  const auto put = [&](int row, int output, float sum) {
    if (output >= outputs) return;
    if (a.bias != nullptr) sum += a.bias[output];
    Out& target = out[row * a.out_stride + output];
    if (a.op == GemvOp::add) sum += static_cast<float>(target);
    target = static_cast<Out>(sum);
  };
  const auto store = [&](int output, int row, float2 lower, float2 upper) {
    if (paired) lower = {silu(lower.x) * upper.x, silu(lower.y) * upper.y};
    put(row, output, lower.x);
    put(row, output + 1, lower.y);
  };

  WeightStream<W, kStages> stream;
  stream.begin(block.pass, locate);
  stage_rows<W>(a, staged);
  __syncthreads();
  const int tiles = block.rows.tiles;
#pragma unroll 1
  while (first_tile < tiles) {
    stream.multiply(block.pass, staged, a.rows, scratch.slots, locate);
    // The next pass's weights are on their way while this one's sums are added.
    const PassPlan pass = block.pass;
    const int current = first_tile;
    first_tile += kTilesPerPass;
    const int left = tiles - first_tile;
    if (left > 0 && left < kTilesPerPass) {
      __syncthreads();
      if (threadIdx.x == 0) block.pass = PassPlan::make(left, row_bytes, kWarps);
      __syncthreads();
    }
    if (left > 0) stream.begin(block.pass, locate);
    __syncthreads();
    add_up(pass, block.rows, paired, current, a.rows, scratch.slots, store);
    __syncthreads();
  }
}

template <typename Launch>
cudaError_t for_each_variant(const Launch& launch) {
  for (const auto kernel :
       {stream_weights<Fp8, float>, stream_weights<Fp8, __nv_bfloat16>,
        stream_weights<__nv_bfloat16, float>, stream_weights<__nv_bfloat16, __nv_bfloat16>}) {
    if (const cudaError_t error = launch(kernel); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

bool gemv_supports(const GemvArguments& a) {
  const int64_t row_bytes = a.columns * (a.weight_is_f8 ? 1 : 2);
  // share_begin() counts in 32 bits; a grid is far below 512 blocks.
  return a.outputs < (1 << 23) && row_bytes % kUnitBytes == 0 && a.rows >= 1 &&
         a.rows <= kGemvRows && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(a.weight_up) % 16 == 0 && staged_bytes(a) <= kMaxStagedBytes;
}

cudaError_t prepare_gemv() {
  return for_each_variant([](const auto kernel) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kMaxStagedBytes + static_cast<int>(sizeof(Scratch)));
  });
}

cudaError_t launch_gemv(const GemvArguments& a, int num_multiprocessors, cudaStream_t stream) {
  const int per_tile = a.op == GemvOp::silu_mul ? 8 : 16;
  const auto tiles = static_cast<int>((a.outputs + per_tile - 1) / per_tile);
  const int stride = staged_stride_of(a);
  const size_t shared = sizeof(Scratch) + static_cast<size_t>(staged_bytes(a));
  const int blocks = std::min(tiles, num_multiprocessors);
  if (a.weight_is_f8) {
    if (a.out_is_f32) {
      stream_weights<Fp8, float><<<blocks, kThreads, shared, stream>>>(a, stride);
    } else {
      stream_weights<Fp8, __nv_bfloat16><<<blocks, kThreads, shared, stream>>>(a, stride);
    }
  } else if (a.out_is_f32) {
    stream_weights<__nv_bfloat16, float><<<blocks, kThreads, shared, stream>>>(a, stride);
  } else {
    stream_weights<__nv_bfloat16, __nv_bfloat16><<<blocks, kThreads, shared, stream>>>(a, stride);
  }
  return cudaGetLastError();
}

}  // namespace glimpse::cuda
