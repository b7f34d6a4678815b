// One block per multiprocessor stages the activation rows in shared memory and streams its share of
// the weight tiles past them (weight_stream.cuh). Moves outputs * columns weight bytes once; the
// activations come from the L2 cache.
#include "cuda/gemv.h"

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {
namespace {

// What a block may use on every card is 99 KiB; the sums of a pass take 16 KiB of it.
constexpr int kMaxStagedBytes = 80 * 1024;

int staged_bytes(const GemvArguments& a) {
  const int stride =
      a.weight_is_f8 ? staged_stride<Fp8>(a.columns) : staged_stride<__nv_bfloat16>(a.columns);
  return a.rows * stride * static_cast<int>(sizeof(__nv_bfloat16));
}

__device__ float silu(float x) {
  return x / (1.0F + __expf(-x));
}

template <typename W>
__device__ void stage_rows(const GemvArguments& a, __nv_bfloat16* staged, int stride) {
  const auto* x = static_cast<const __nv_bfloat16*>(a.x);
  for (int row = 0; row < a.rows; ++row) {
    for (int column = threadIdx.x * 4; column < stride - 8; column += kStreamThreads * 4) {
      __nv_bfloat16 four[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four[i] = column + i < a.columns ? x[row * a.x_stride + column + i] : __nv_bfloat16(0.0F);
      }
      store_staged<W>(staged + row * stride, column, four);
    }
  }
}

template <typename W, typename Out>
__global__ void __launch_bounds__(kStreamThreads, 1) stream_weights(GemvArguments a) {
  extern __shared__ __align__(16) uint8_t shared[];
  auto& scratch = *reinterpret_cast<StreamScratch*>(shared);
  auto* staged = reinterpret_cast<__nv_bfloat16*>(shared + sizeof(StreamScratch));
  const int stride = staged_stride<W>(a.columns);
  const TileStream<W> stream(a.columns, a.columns);
  const bool paired = a.op == GemvOp::silu_mul;
  const int tile_outputs = paired ? 8 : kTileRows;
  const int outputs = static_cast<int>(a.outputs);
  const int tiles = (outputs + tile_outputs - 1) / tile_outputs;
  const int first_tile = share_begin(tiles, blockIdx.x, gridDim.x);
  const int last_tile = share_begin(tiles, blockIdx.x + 1, gridDim.x);
  const int64_t scale_columns = (a.columns + 127) / 128;

  const auto locate = [&](int tile) {
    const int row = tile * tile_outputs;
    const int upper_row = paired ? row : min(row + 8, outputs - 1);
    const void* upper = paired ? a.weight_up : a.weight;
    const float* upper_scales = paired ? a.scales_up : a.scales;
    TileRows rows;
    rows.lower = static_cast<const uint8_t*>(a.weight) + row * stream.row_bytes;
    rows.upper = static_cast<const uint8_t*>(upper) + upper_row * stream.row_bytes;
    rows.lower_scales = a.scales + row / 128 * scale_columns;
    rows.upper_scales = upper_scales + upper_row / 128 * scale_columns;
    rows.lower_rows = min(8, outputs - row);
    rows.upper_rows = min(8, outputs - upper_row);
    return rows;
  };
  auto* out = static_cast<Out*>(a.out);
  const auto put = [&](int column, int output, float sum) {
    if (output >= outputs) return;
    if (a.bias != nullptr) sum += a.bias[output];
    Out& target = out[column * a.out_stride + output];
    if (a.op == GemvOp::add) sum += static_cast<float>(target);
    target = static_cast<Out>(sum);
  };
  const auto store = [&](int tile, int row, int column, float lower, float upper) {
    const int output = tile * tile_outputs + row;
    if (paired) {
      put(column, output, silu(lower) * upper);
    } else {
      put(column, output, lower);
      put(column, output + 8, upper);
    }
  };

  UnitRegisters registers;
  stream.load_first(first_tile, last_tile, locate, registers);
  stage_rows<W>(a, staged, stride);
  __syncthreads();
  stream.multiply(first_tile, last_tile, staged, a.rows, stride, scratch, registers, locate, store);
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
  return a.rows >= 1 && a.rows <= kGemvRows && row_bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(a.weight) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(a.weight_up) % 16 == 0 && staged_bytes(a) <= kMaxStagedBytes;
}

cudaError_t prepare_gemv() {
  return for_each_variant([](const auto kernel) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kMaxStagedBytes + static_cast<int>(sizeof(StreamScratch)));
  });
}

cudaError_t launch_gemv(const GemvArguments& a, int num_multiprocessors, cudaStream_t stream) {
  const int per_tile = a.op == GemvOp::silu_mul ? 8 : kTileRows;
  const auto tiles = static_cast<int>((a.outputs + per_tile - 1) / per_tile);
  const int blocks = tiles < num_multiprocessors ? tiles : num_multiprocessors;
  const size_t shared = sizeof(StreamScratch) + static_cast<size_t>(staged_bytes(a));
  if (a.weight_is_f8) {
    if (a.out_is_f32) {
      stream_weights<Fp8, float><<<blocks, kStreamThreads, shared, stream>>>(a);
    } else {
      stream_weights<Fp8, __nv_bfloat16><<<blocks, kStreamThreads, shared, stream>>>(a);
    }
  } else if (a.out_is_f32) {
    stream_weights<__nv_bfloat16, float><<<blocks, kStreamThreads, shared, stream>>>(a);
  } else {
    stream_weights<__nv_bfloat16, __nv_bfloat16><<<blocks, kStreamThreads, shared, stream>>>(a);
  }
  return cudaGetLastError();
}

}  // namespace glimpse::cuda
