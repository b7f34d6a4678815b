// Reading and writing elements of tensors as float, whatever they are stored as.
#pragma once

#include "tensor/tensor.h"

namespace glimpse {

inline void store(float value, float& to) {
  to = value;
}
inline void store(float value, BFloat16& to) {
  to = to_bfloat16(value);
}

/// Row `i` of a tensor of any rank seen as rows of its last dimension. Three dimensions may have a
/// stride of their own each.
template <typename T>
T* row_of(const Tensor& x, int64_t i) {
  if (x.rank() == 3) {
    return x.data<T>() + i / x.size(1) * x.stride(0) + i % x.size(1) * x.stride(1);
  }
  if (x.rank() == 2) return x.data<T>() + i * x.stride(0);
  return x.rank() == 1 ? x.data<T>() : x.data<T>() + i * x.row_stride();
}

/// Calls body.operator()<T>() for a dtype of the KV cache.
template <typename Body>
void dispatch_cache(DType dtype, Body&& body) {
  if (dtype == DType::f8_e4m3) return body.template operator()<Float8E4M3>();
  dispatch_activation(dtype, body);
}

/// Calls body.operator()<From, To>() for two activation dtypes.
template <typename Body>
void dispatch_two_activations(DType from, DType to, Body&& body) {
  dispatch_activation(from, [&]<typename From>() {
    dispatch_activation(to, [&]<typename To>() { body.template operator()<From, To>(); });
  });
}

}  // namespace glimpse
