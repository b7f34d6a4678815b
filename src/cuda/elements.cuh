// Element types on the device, loads and stores of several elements at once, and the dispatch from
// an Element to a type. Included by every .cu of the plain kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <initializer_list>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace glimpse::cuda {

using BFloat16 = __nv_bfloat16;
using Float16 = __half;
using Float8 = __nv_fp8_e4m3;

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(BFloat16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(Float16 x) {
  return __half2float(x);
}
__device__ inline float to_float(Float8 x) {
  return static_cast<float>(x);
}

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline BFloat16 from_float<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline Float8 from_float<Float8>(float x) {
  return Float8(x);
}  // saturates at +-448

/// Neighbouring elements that move with one access of up to 16 bytes.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T values[kCount];
};

template <int kCount, typename T>
__device__ inline void load(const T* from, float (&to)[kCount]) {
  const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = to_float(pack.values[i]);
}

template <int kCount, typename T>
__device__ inline void store(const float (&from)[kCount], T* to) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.values[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

/// Rows as a kernel sees them.
template <typename T>
struct DeviceRows {
  T* data;
  int64_t token_stride;
  int64_t head_stride;
  uint32_t heads;

  explicit DeviceRows(const Rows& rows)
      : data(static_cast<T*>(rows.data)),
        token_stride(rows.token_stride),
        head_stride(rows.head_stride),
        heads(static_cast<uint32_t>(rows.heads)) {}
  __device__ T* row(uint32_t index) const {
    return data + index / heads * token_stride + index % heads * head_stride;
  }
  __device__ T* at(uint32_t token, uint32_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

inline int64_t bytes_of(Element element) {
  switch (element) {
    case Element::f32:
      return 4;
    case Element::f16:
    case Element::bf16:
      return 2;
    case Element::f8:
      return 1;
  }
  return 0;
}

/// Whether rows of `dim` elements can be moved `count` elements at a time.
inline bool allows_packs(const Rows& rows, int64_t dim, int64_t count) {
  const int64_t bytes = count * bytes_of(rows.element);
  const int64_t alignment = bytes < 16 ? bytes : 16;
  const auto fits = [&](int64_t stride) {
    return stride * bytes_of(rows.element) % alignment == 0;
  };
  return dim % count == 0 && reinterpret_cast<uintptr_t>(rows.data) % alignment == 0 &&
         fits(rows.token_stride) && (rows.heads == 1 || fits(rows.head_stride));
}
inline bool allow_packs(std::initializer_list<Rows> all, int64_t dim, int64_t count) {
  for (const Rows& rows : all) {
    if (!allows_packs(rows, dim, count)) return false;
  }
  return true;
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

/// body.operator()<T>() with the type of an activation: float or BFloat16.
template <typename Body>
cudaError_t dispatch_activation(Element element, Body&& body) {
  if (element == Element::f32) return body.template operator()<float>();
  if (element == Element::bf16) return body.template operator()<BFloat16>();
  return cudaErrorInvalidValue;
}

/// The same for tables and weights, which may be Float16 and, for weights, Float8 as well.
template <typename Body>
cudaError_t dispatch_table(Element element, Body&& body) {
  if (element == Element::f16) return body.template operator()<Float16>();
  return dispatch_activation(element, body);
}
template <typename Body>
cudaError_t dispatch_weight(Element element, Body&& body) {
  if (element == Element::f8) return body.template operator()<Float8>();
  return dispatch_table(element, body);
}
/// The same for a KV cache: float, BFloat16 or Float8.
template <typename Body>
cudaError_t dispatch_cache(Element element, Body&& body) {
  if (element == Element::f8) return body.template operator()<Float8>();
  return dispatch_activation(element, body);
}

inline unsigned divide_up(int64_t a, int64_t b) {
  return static_cast<unsigned>((a + b - 1) / b);
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFU, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, offset));
  }
  return x;
}

}  // namespace glimpse::cuda
