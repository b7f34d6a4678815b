// Elementwise operations: one thread per pack of 8 (or 1) elements. Each moves its inputs once and
// its output once.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline float silu(float x) {
  return x / (1.0F + expf(-x));
}

__device__ inline float gelu_tanh(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608028654F;
  return 0.5F * x * (1.0F + tanhf(kSqrt2OverPi * (x + 0.044715F * x * x * x)));
}

__device__ inline float gelu_erf(float x) {
  constexpr float kSqrtHalf = 0.7071067811865476F;
  return 0.5F * x * (1.0F + erff(x * kSqrtHalf));
}

constexpr bool is_binary(Elementwise operation) {
  return operation == Elementwise::add || operation == Elementwise::silu_mul;
}

template <Elementwise kOperation>
__device__ float apply(float a, float b) {
  if constexpr (kOperation == Elementwise::add) return a + b;
  if constexpr (kOperation == Elementwise::gelu_tanh) return gelu_tanh(a);
  if constexpr (kOperation == Elementwise::gelu_erf) return gelu_erf(a);
  if constexpr (kOperation == Elementwise::silu_mul) return silu(a) * b;
  return a;
}

template <Elementwise kOperation, typename A, typename B, typename Out, int kPack>
__global__ void __launch_bounds__(kThreads)
    apply_elementwise(DeviceRows<A> a, DeviceRows<B> b, DeviceRows<Out> out, uint32_t packs_per_row,
                      uint32_t num_packs) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_packs) return;
  const uint32_t row = index / packs_per_row;
  const uint32_t column = index % packs_per_row * kPack;
  float values[kPack];
  float others[kPack] = {};
  load(a.row(row) + column, values);
  if constexpr (is_binary(kOperation)) load(b.row(row) + column, others);
#pragma unroll
  for (int i = 0; i < kPack; ++i) values[i] = apply<kOperation>(values[i], others[i]);
  store(values, out.row(row) + column);
}

template <Elementwise kOperation, typename A, typename B, typename Out, int kPack>
cudaError_t launch(const ElementwiseArguments& a, const LaunchStream& stream) {
  const int64_t packs = a.num_rows * (a.dim / kPack);
  if (packs > UINT32_MAX - kThreads) return cudaErrorInvalidValue;
  return launch_kernel(apply_elementwise<kOperation, A, B, Out, kPack>,
                       {divide_up(packs, kThreads), kThreads}, stream, DeviceRows<A>(a.a),
                       DeviceRows<B>(a.b), DeviceRows<Out>(a.out),
                       static_cast<uint32_t>(a.dim / kPack), static_cast<uint32_t>(packs));
}

// Only what backend.h allows is instantiated: silu_mul and gelu keep their dtype.
template <Elementwise kOperation>
cudaError_t launch_same(const ElementwiseArguments& a, bool packs, const LaunchStream& stream) {
  return dispatch_activation(a.out.element, [&]<typename T>() {
    return packs ? launch<kOperation, T, T, T, 8>(a, stream)
                 : launch<kOperation, T, T, T, 1>(a, stream);
  });
}

cudaError_t launch_convert(const ElementwiseArguments& a, bool packs, const LaunchStream& stream) {
  return dispatch_activation(a.a.element, [&]<typename A>() {
    return dispatch_activation(a.out.element, [&]<typename Out>() {
      return packs ? launch<Elementwise::convert, A, A, Out, 8>(a, stream)
                   : launch<Elementwise::convert, A, A, Out, 1>(a, stream);
    });
  });
}

cudaError_t launch_add(const ElementwiseArguments& a, bool packs, const LaunchStream& stream) {
  return dispatch_activation(a.a.element, [&]<typename A>() {
    return dispatch_activation(a.b.element, [&]<typename B>() {
      return dispatch_activation(a.out.element, [&]<typename Out>() {
        return packs ? launch<Elementwise::add, A, B, Out, 8>(a, stream)
                     : launch<Elementwise::add, A, B, Out, 1>(a, stream);
      });
    });
  });
}

}  // namespace

cudaError_t launch_elementwise(const ElementwiseArguments& a, const LaunchStream& stream) {
  if (a.num_rows == 0 || a.dim == 0) return cudaSuccess;
  const bool packs = allow_packs({a.a, a.out}, a.dim, 8) &&
                     (!is_binary(a.operation) || allow_packs({a.b}, a.dim, 8));
  switch (a.operation) {
    case Elementwise::convert:
      return launch_convert(a, packs, stream);
    case Elementwise::add:
      return launch_add(a, packs, stream);
    case Elementwise::gelu_tanh:
      return launch_same<Elementwise::gelu_tanh>(a, packs, stream);
    case Elementwise::gelu_erf:
      return launch_same<Elementwise::gelu_erf>(a, packs, stream);
    case Elementwise::silu_mul:
      return launch_same<Elementwise::silu_mul>(a, packs, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace glimpse::cuda
