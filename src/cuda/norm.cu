// RMS norm and layer norm. Rows of up to 1,024 elements get a warp each, four rows to a block;
// longer rows a block each. A row is read from memory once; what follows hits the L1 cache.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int64_t kLongestWarpRow = 1024;

/// The sum over the threads of one row: a warp's 32 or a whole block.
template <int kThreads>
__device__ float row_sum(float x) {
  x = warp_sum(x);
  if constexpr (kThreads > 32) {
    __shared__ float parts[kThreads / 32];
    __syncthreads();  // parts may still be read from the sum before
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(threadIdx.x % 32 < kThreads / 32 ? parts[threadIdx.x % 32] : 0.0F);
  }
  return x;
}

// kThreads threads per row; each handles the same packs in every pass, so x and out may alias.
template <typename In, typename Out, int kPack, int kThreads, bool kIsLayerNorm>
__global__ void __launch_bounds__(kThreads == 32 ? 128 : kThreads)
    normalize_rows(DeviceRows<In> x, const float* __restrict__ weight,
                   const float* __restrict__ bias, float epsilon, DeviceRows<Out> out,
                   uint32_t num_rows, int dim) {
  const uint32_t row = kThreads == 32 ? blockIdx.x * 4 + threadIdx.x / 32 : blockIdx.x;
  const int lane = kThreads == 32 ? threadIdx.x % 32 : threadIdx.x;
  if (row >= num_rows) return;  // whole warps, and in the block form none
  const In* from = x.row(row);
  Out* to = out.row(row);
  float values[kPack];
  float mean = 0;
  if constexpr (kIsLayerNorm) {
    float sum = 0;
    for (int i = lane * kPack; i < dim; i += kThreads * kPack) {
      load(from + i, values);
      for (const float value : values) sum += value;
    }
    mean = row_sum<kThreads>(sum) / static_cast<float>(dim);
  }
  float squares = 0;
  for (int i = lane * kPack; i < dim; i += kThreads * kPack) {
    load(from + i, values);
    for (const float value : values) squares += (value - mean) * (value - mean);
  }
  const float variance = row_sum<kThreads>(squares) / static_cast<float>(dim);
  const float factor = 1.0F / sqrtf(variance + epsilon);
  for (int i = lane * kPack; i < dim; i += kThreads * kPack) {
    load(from + i, values);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      values[j] = (values[j] - mean) * factor * weight[i + j];
      if constexpr (kIsLayerNorm) values[j] += bias[i + j];
    }
    store(values, to + i);
  }
}

template <typename In, typename Out, int kPack, bool kIsLayerNorm>
void launch(const NormArguments& a, cudaStream_t stream) {
  const auto rows = static_cast<uint32_t>(a.num_rows);
  const int dim = static_cast<int>(a.dim);
  if (a.dim <= kLongestWarpRow) {
    normalize_rows<In, Out, kPack, 32, kIsLayerNorm><<<divide_up(a.num_rows, 4), 128, 0, stream>>>(
        DeviceRows<In>(a.x), a.weight, a.bias, a.epsilon, DeviceRows<Out>(a.out), rows, dim);
  } else {
    normalize_rows<In, Out, kPack, kBlockThreads, kIsLayerNorm><<<rows, kBlockThreads, 0, stream>>>(
        DeviceRows<In>(a.x), a.weight, a.bias, a.epsilon, DeviceRows<Out>(a.out), rows, dim);
  }
}

}  // namespace

cudaError_t launch_norm(const NormArguments& a, cudaStream_t stream) {
  if (a.num_rows == 0) return cudaSuccess;
  const bool packs = allow_packs({a.x, a.out}, a.dim, 8);
  return dispatch_activation(a.x.element, [&]<typename In>() {
    return dispatch_activation(a.out.element, [&]<typename Out>() {
      if (a.bias != nullptr) {
        packs ? launch<In, Out, 8, true>(a, stream) : launch<In, Out, 1, true>(a, stream);
      } else {
        packs ? launch<In, Out, 8, false>(a, stream) : launch<In, Out, 1, false>(a, stream);
      }
      return cudaGetLastError();
    });
  });
}

}  // namespace glimpse::cuda
