// Rotary position embedding: the table of cosines and sines of a step, and its application. Angles
// are products of f32 numbers and their cosines are the accurate ones: an error in the last bit of
// an angle of 30,000 is already visible in the logits.
#include "cuda/elements.cuh"
#include "cuda/tensor_core.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kThreads = 256;

// One thread per angle.
__global__ void __launch_bounds__(kThreads) fill_rotary_table(RotaryTableArguments a) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= a.tokens * a.half) return;
  const int64_t token = index / a.half;
  const int64_t i = index % a.half;
  const int32_t position = a.positions[a.axes[i] * a.axis_stride + token];
  const float angle = static_cast<float>(position) * a.inverse_frequencies[i];
  a.cosines[token * a.cosine_stride + i] = cosf(angle);
  a.sines[token * a.sine_stride + i] = sinf(angle);
}

// One thread per kPack pairs (i, i + half) of a head.
template <typename T, int kPack>
__global__ void __launch_bounds__(kThreads)
    rotate_heads(DeviceRows<T> x, const float* __restrict__ cosines,
                 const float* __restrict__ sines, int64_t cosine_stride, int64_t sine_stride,
                 DeviceRows<T> out, int half, uint32_t packs_per_head, uint32_t num_packs) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_packs) return;
  const uint32_t row = index / packs_per_head;
  const uint32_t i = index % packs_per_head * kPack;
  const uint32_t token = row / x.heads;
  const T* from = x.row(row) + i;
  T* to = out.row(row) + i;
  const float* cosine = cosines + token * cosine_stride + i;
  const float* sine = sines + token * sine_stride + i;
  float first[kPack];
  float second[kPack];
  load(from, first);
  load(from + half, second);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    const float a = first[j];
    const float b = second[j];
    first[j] = rotated_first(a, b, cosine[j], sine[j]);
    second[j] = rotated_second(a, b, cosine[j], sine[j]);
  }
  store(first, to);
  store(second, to + half);
}

template <typename T, int kPack>
cudaError_t launch(const RotateArguments& a, const LaunchStream& stream) {
  const int64_t packs = a.tokens * a.x.heads * (a.half / kPack);
  if (packs > UINT32_MAX - kThreads) return cudaErrorInvalidValue;
  return launch_kernel(rotate_heads<T, kPack>, {divide_up(packs, kThreads), kThreads}, stream,
                       DeviceRows<T>(a.x), a.cosines, a.sines, a.cosine_stride, a.sine_stride,
                       DeviceRows<T>(a.out), static_cast<int>(a.half),
                       static_cast<uint32_t>(a.half / kPack), static_cast<uint32_t>(packs));
}

}  // namespace

cudaError_t launch_rotary_table(const RotaryTableArguments& a, const LaunchStream& stream) {
  if (a.tokens * a.half == 0) return cudaSuccess;
  return launch_kernel(fill_rotary_table, {divide_up(a.tokens * a.half, kThreads), kThreads},
                       stream, a);
}

cudaError_t launch_rotate(const RotateArguments& a, const LaunchStream& stream) {
  if (a.tokens * a.half * a.x.heads == 0) return cudaSuccess;
  return dispatch_activation(a.x.element, [&]<typename T>() {
    if (allow_packs({a.x, a.out}, a.half, 8)) return launch<T, 8>(a, stream);
    if (allow_packs({a.x, a.out}, a.half, 4)) return launch<T, 4>(a, stream);
    return launch<T, 1>(a, stream);
  });
}

}  // namespace glimpse::cuda
