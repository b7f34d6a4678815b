// out = x W^T + bias, plain: 64x64 tiles, 16 columns of k at a time through shared memory, f32
// sums. x in bf16 multiplies bf16 operands and applies an f8 weight's scale to the sum of each 128
// columns; x in f8 has such scales too (W8A8); x in f32 scales the weight itself. Every dtype and
// every shape.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kStep = 16;
constexpr int kScaleBlock = 128;
constexpr int kThreads = 256;  // 16 x 16, each 4 x 4 sums
constexpr int kPadding = 4;    // shared rows stay 16-byte aligned and spread over the banks

template <typename X, typename Weight>
struct Product {
  DeviceRows<X> x;
  const Weight* weight;
  const float* scales;
  const float* x_scales;
  int64_t x_scale_stride;
  int tokens;
  int in_features;
  int out_features;
  static constexpr bool kIsExact = sizeof(X) == 4;
  static constexpr bool kIsFloat8 = sizeof(Weight) == 1;
  static constexpr bool kXIsFloat8 = sizeof(X) == 1;

  __device__ float x_at(int token, int k) const {
    if (token >= tokens || k >= in_features) return 0.0F;
    return to_float(x.at(static_cast<uint32_t>(token), 0)[k]);
  }
  __device__ float scale_at(int feature, int k) const {
    const int blocks = (in_features + kScaleBlock - 1) / kScaleBlock;
    return scales[int64_t{feature / kScaleBlock} * blocks + k / kScaleBlock];
  }
  __device__ float x_scale_at(int token, int k) const {
    if constexpr (!kXIsFloat8) return 1.0F;
    return token < tokens ? x_scales[k / kScaleBlock * x_scale_stride + token] : 0.0F;
  }
  __device__ float weight_at(int feature, int k) const {
    if (feature >= out_features || k >= in_features) return 0.0F;
    const float value = to_float(weight[int64_t{feature} * in_features + k]);
    if constexpr (kIsExact && kIsFloat8) return value * scale_at(feature, k);
    if constexpr (!kIsExact) return to_float(from_float<BFloat16>(value));
    return value;
  }
};

// A block per tile of out. Thread (tx, ty) has rows ty + 16 i of x and rows tx + 16 j of W.
template <typename X, typename Weight, typename Out, bool kAdds>
__global__ void __launch_bounds__(kThreads)
    multiply_tile(Product<X, Weight> product, const float* __restrict__ bias, DeviceRows<Out> out) {
  using P = Product<X, Weight>;
  __shared__ float x_tile[kStep][kTile + kPadding];
  __shared__ float w_tile[kStep][kTile + kPadding];
  const int thread = static_cast<int>(threadIdx.x);
  const int tx = thread % 16;
  const int ty = thread / 16;
  const int first_token = static_cast<int>(blockIdx.y) * kTile;
  const int first_feature = static_cast<int>(blockIdx.x) * kTile;
  float sums[4][4] = {};
  float block_sums[4][4] = {};
  for (int k = 0; k < product.in_features; k += kStep) {
    for (int i = thread; i < kTile * kStep; i += kThreads) {
      x_tile[i % kStep][i / kStep] = product.x_at(first_token + i / kStep, k + i % kStep);
      w_tile[i % kStep][i / kStep] = product.weight_at(first_feature + i / kStep, k + i % kStep);
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kStep; ++kk) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          block_sums[i][j] += x_tile[kk][ty + 16 * i] * w_tile[kk][tx + 16 * j];
        }
      }
    }
    __syncthreads();
    if ((k + kStep) % kScaleBlock != 0 && k + kStep < product.in_features) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int feature = first_feature + tx + 16 * j;
      float scale = 1.0F;
      if constexpr (P::kIsFloat8 && !P::kIsExact) {
        if (feature < product.out_features) scale = product.scale_at(feature, k);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i][j] += product.x_scale_at(first_token + ty + 16 * i, k) * scale * block_sums[i][j];
        block_sums[i][j] = 0;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = first_token + ty + 16 * i;
      const int feature = first_feature + tx + 16 * j;
      if (token >= product.tokens || feature >= product.out_features) continue;
      Out* target = out.at(static_cast<uint32_t>(token), 0) + feature;
      float value = sums[i][j] + (bias != nullptr ? bias[feature] : 0.0F);
      if constexpr (kAdds) value += to_float(*target);
      *target = from_float<Out>(value);
    }
  }
}

template <typename X, typename Weight>
cudaError_t launch(const LinearArguments& a, cudaStream_t stream) {
  const dim3 grid(divide_up(a.out_features, kTile), divide_up(a.tokens, kTile));
  return dispatch_activation(a.out.element, [&]<typename Out>() {
    const Product<X, Weight> product{DeviceRows<X>(a.x),
                                     static_cast<const Weight*>(a.weight),
                                     a.scales,
                                     a.x_scales,
                                     a.x_scale_stride,
                                     static_cast<int>(a.tokens),
                                     static_cast<int>(a.in_features),
                                     static_cast<int>(a.out_features)};
    const DeviceRows<Out> out(a.out);
    if (a.adds_to_out) {
      multiply_tile<X, Weight, Out, true><<<grid, kThreads, 0, stream>>>(product, a.bias, out);
    } else {
      multiply_tile<X, Weight, Out, false><<<grid, kThreads, 0, stream>>>(product, a.bias, out);
    }
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t launch_linear_plain(const LinearArguments& a, cudaStream_t stream) {
  if (a.tokens == 0 || a.out_features == 0) return cudaSuccess;
  if (a.x.element == Element::f8) return launch<Float8, Float8>(a, stream);
  return dispatch_activation(a.x.element, [&]<typename X>() {
    return dispatch_weight(a.weight_element,
                           [&]<typename Weight>() { return launch<X, Weight>(a, stream); });
  });
}

}  // namespace glimpse::cuda
