// Activations rounded to e4m3 for W8A8: each row's 128 consecutive columns get a scale of their
// own. One kernel for every dtype and shape; src/cpu/quantize_activations.h is the same on the CPU,
// bit for bit.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kGroup = 128;
constexpr int kLanes = 16;  // of a group
constexpr int kEach = kGroup / kLanes;
constexpr int kThreads = 256;
constexpr float kLargestE4M3 = 448.0F;

// 16 lanes per group, 8 columns each, in registers: x is read once. Reads 2 or 4 bytes and writes
// one for each element.
template <typename X, bool kPacked>
__global__ void __launch_bounds__(kThreads)
    quantize_groups(DeviceRows<X> x, Float8* __restrict__ codes, int64_t codes_stride,
                    float* __restrict__ scales, int64_t scale_stride, int64_t num_rows, int dim) {
  const int groups_of_row = (dim + kGroup - 1) / kGroup;
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  // Lanes beyond the last group repeat it, because the exchange below wants the whole warp.
  const int64_t group = min(index, num_rows * groups_of_row - 1);
  const auto row = static_cast<uint32_t>(group / groups_of_row);
  const int block = static_cast<int>(group % groups_of_row);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int column = block * kGroup + lane * kEach;
  float values[kEach] = {};
  if constexpr (kPacked) {
    if (column < dim) load(x.row(row) + column, values);
  } else {
    for (int i = 0; i < kEach && column + i < dim; ++i) {
      values[i] = to_float(x.row(row)[column + i]);
    }
  }
  unsigned largest = 0;  // magnitudes order like their bits, NaN above all
#pragma unroll
  for (const float value : values) largest = max(largest, __float_as_uint(fabsf(value)));
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    largest = max(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, offset));
  }
  const float scale = __fdiv_rn(__uint_as_float(largest), kLargestE4M3);
  if (lane == 0) scales[block * scale_stride + row] = scale;
#pragma unroll
  for (float& value : values) value = scale > 0 ? __fdiv_rn(value, scale) : 0.0F;
  Float8* to = codes + row * codes_stride + column;
  if constexpr (kPacked) {
    if (column < dim) store(values, to);
  } else {
    for (int i = 0; i < kEach && column + i < dim; ++i) to[i] = from_float<Float8>(values[i]);
  }
}

}  // namespace

cudaError_t launch_quantize(const QuantizeArguments& a, cudaStream_t stream) {
  if (a.num_rows == 0 || a.dim == 0) return cudaSuccess;
  const Rows codes{.data = a.codes, .token_stride = a.codes_stride, .element = Element::f8};
  const unsigned blocks = divide_up(a.num_rows * divide_up(a.dim, kGroup), kThreads / kLanes);
  const bool is_packed = allow_packs({a.x, codes}, a.dim, kEach);
  return dispatch_activation(a.x.element, [&]<typename X>() {
    const DeviceRows<X> x(a.x);
    auto* to = static_cast<Float8*>(a.codes);
    const int dim = static_cast<int>(a.dim);
    if (is_packed) {
      quantize_groups<X, true><<<blocks, kThreads, 0, stream>>>(x, to, a.codes_stride, a.scales,
                                                                a.scale_stride, a.num_rows, dim);
    } else {
      quantize_groups<X, false><<<blocks, kThreads, 0, stream>>>(x, to, a.codes_stride, a.scales,
                                                                 a.scale_stride, a.num_rows, dim);
    }
    return cudaGetLastError();
  });
}

}  // namespace glimpse::cuda
