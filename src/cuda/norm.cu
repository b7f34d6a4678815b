// RMS norm and layer norm. Rows of up to 4,096 elements get a warp each, which keeps them in
// registers: memory is read once and no block-wide barrier is needed. Longer or unaligned rows get
// a block each, which reads them again from the caches.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kRowsPerBlock = 4;  // of the warp form

/// The sum over a block.
__device__ float block_sum(float x) {
  __shared__ float parts[kBlockThreads / 32];
  x = warp_sum(x);
  __syncthreads();  // parts may still be read from the sum before
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_sum(threadIdx.x % 32 < kBlockThreads / 32 ? parts[threadIdx.x % 32] : 0.0F);
}

// One warp per row; a lane keeps kPacks packs of kPack elements. Moves each element once in and
// once out. x and out may alias.
template <typename In, typename Out, int kPack, int kPacks, bool kIsLayerNorm>
__global__ void __launch_bounds__(32 * kRowsPerBlock)
    normalize_in_warps(DeviceRows<In> x, const int32_t* __restrict__ indices,
                       const float* __restrict__ weight, const float* __restrict__ bias,
                       float epsilon, DeviceRows<Out> out, uint32_t num_rows, int dim) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const uint32_t row = blockIdx.x * kRowsPerBlock + threadIdx.x / 32;
  if (row >= num_rows) return;  // whole warps
  const int first = static_cast<int>(threadIdx.x % 32) * kPack;
  const In* from = x.row(indices != nullptr ? static_cast<uint32_t>(indices[row]) : row);
  float values[kPacks][kPack] = {};
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int at = first + i * 32 * kPack;
    if (at < dim) load(from + at, values[i]);
  }
  float mean = 0;
  if constexpr (kIsLayerNorm) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) sum += values[i][j];
    }
    mean = warp_sum(sum) / static_cast<float>(dim);
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    if (first + i * 32 * kPack >= dim) break;
#pragma unroll
    for (int j = 0; j < kPack; ++j) squares += (values[i][j] - mean) * (values[i][j] - mean);
  }
  const float factor = 1.0F / sqrtf(warp_sum(squares) / static_cast<float>(dim) + epsilon);
  Out* to = out.row(row);
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int at = first + i * 32 * kPack;
    if (at >= dim) break;
    float weights[kPack];
    load(weight + at, weights);
#pragma unroll
    for (int j = 0; j < kPack; ++j) values[i][j] = (values[i][j] - mean) * factor * weights[j];
    if constexpr (kIsLayerNorm) {
      load(bias + at, weights);
#pragma unroll
      for (int j = 0; j < kPack; ++j) values[i][j] += weights[j];
    }
    store(values[i], to + at);
  }
}

// One block per row; a thread handles the same packs in every pass, so x and out may alias.
template <typename In, typename Out, int kPack, bool kIsLayerNorm>
__global__ void __launch_bounds__(kBlockThreads)
    normalize_in_blocks(DeviceRows<In> x, const int32_t* __restrict__ indices,
                        const float* __restrict__ weight, const float* __restrict__ bias,
                        float epsilon, DeviceRows<Out> out, int dim) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const int first = static_cast<int>(threadIdx.x) * kPack;
  constexpr int kStep = kBlockThreads * kPack;
  const In* from =
      x.row(indices != nullptr ? static_cast<uint32_t>(indices[blockIdx.x]) : blockIdx.x);
  Out* to = out.row(blockIdx.x);
  float values[kPack];
  float mean = 0;
  if constexpr (kIsLayerNorm) {
    float sum = 0;
    for (int i = first; i < dim; i += kStep) {
      load(from + i, values);
      for (const float value : values) sum += value;
    }
    mean = block_sum(sum) / static_cast<float>(dim);
  }
  float squares = 0;
  for (int i = first; i < dim; i += kStep) {
    load(from + i, values);
    for (const float value : values) squares += (value - mean) * (value - mean);
  }
  const float factor = 1.0F / sqrtf(block_sum(squares) / static_cast<float>(dim) + epsilon);
  for (int i = first; i < dim; i += kStep) {
    load(from + i, values);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      values[j] = (values[j] - mean) * factor * weight[i + j];
      if constexpr (kIsLayerNorm) values[j] += bias[i + j];
    }
    store(values, to + i);
  }
}

template <typename In, typename Out, int kPack, int kPacks, bool kIsLayerNorm>
cudaError_t launch_warps(const NormArguments& a, const LaunchStream& stream) {
  return launch_kernel(normalize_in_warps<In, Out, kPack, kPacks, kIsLayerNorm>,
                       {divide_up(a.num_rows, kRowsPerBlock), 32 * kRowsPerBlock}, stream,
                       DeviceRows<In>(a.x), a.indices, a.weight, a.bias, a.epsilon,
                       DeviceRows<Out>(a.out), static_cast<uint32_t>(a.num_rows),
                       static_cast<int>(a.dim));
}

template <typename In, typename Out, int kPack, bool kIsLayerNorm>
cudaError_t launch_blocks(const NormArguments& a, const LaunchStream& stream) {
  return launch_kernel(normalize_in_blocks<In, Out, kPack, kIsLayerNorm>,
                       {static_cast<unsigned>(a.num_rows), kBlockThreads}, stream,
                       DeviceRows<In>(a.x), a.indices, a.weight, a.bias, a.epsilon,
                       DeviceRows<Out>(a.out), static_cast<int>(a.dim));
}

template <typename In, typename Out, bool kIsLayerNorm>
cudaError_t launch(const NormArguments& a, const LaunchStream& stream) {
  const auto is_aligned = [](const float* vector) {
    return reinterpret_cast<uintptr_t>(vector) % 16 == 0;
  };
  const auto packs = [&](int64_t count) {
    return allow_packs({a.x, a.out}, a.dim, count) && is_aligned(a.weight) && is_aligned(a.bias);
  };
  if (a.dim <= 128 && packs(4)) return launch_warps<In, Out, 4, 1, kIsLayerNorm>(a, stream);
  if (!packs(8)) return launch_blocks<In, Out, 1, kIsLayerNorm>(a, stream);
  constexpr int kPack = 16 / sizeof(In);  // so that the lanes of a warp read neighbours
  constexpr int kStep = 32 * kPack;
  if (a.dim <= 1280) return launch_warps<In, Out, kPack, 1280 / kStep, kIsLayerNorm>(a, stream);
  if (a.dim <= 2560) return launch_warps<In, Out, kPack, 2560 / kStep, kIsLayerNorm>(a, stream);
  if (a.dim <= 4096) return launch_warps<In, Out, kPack, 4096 / kStep, kIsLayerNorm>(a, stream);
  return launch_blocks<In, Out, 8, kIsLayerNorm>(a, stream);
}

}  // namespace

cudaError_t launch_norm(const NormArguments& a, const LaunchStream& stream) {
  if (a.num_rows == 0) return cudaSuccess;
  return dispatch_activation(a.x.element, [&]<typename In>() {
    return dispatch_activation(a.out.element, [&]<typename Out>() {
      return a.bias != nullptr ? launch<In, Out, true>(a, stream)
                               : launch<In, Out, false>(a, stream);
    });
  });
}

}  // namespace glimpse::cuda
