// A non-owning strided view of device or host memory. Passed by value, like std::span: constness
// of the view says nothing about the elements. Buffer and Arena (tensor/arena.h) are the owners.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "tensor/dtype.h"

namespace glimpse {

enum class Device : uint8_t { cpu, cuda };

class Tensor {
 public:
  static constexpr int kMaxRank = 4;

  /// An empty tensor: "there is none" (a linear without a bias).
  Tensor() = default;

  /// A contiguous tensor over `data`. Weights mapped read-only are viewed through the same type;
  /// writing to them faults.
  Tensor(const void* data, DType dtype, Device device, std::span<const int64_t> shape);
  Tensor(const void* data, DType dtype, Device device, std::initializer_list<int64_t> shape)
      : Tensor(data, dtype, device, std::span(shape.begin(), shape.size())) {}

  [[nodiscard]] bool empty() const { return rank_ == 0; }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] int rank() const { return rank_; }
  /// Size of a dimension; negative counts from the innermost: size(-1) is the row length.
  [[nodiscard]] int64_t size(int dimension) const { return shape_[index(dimension)]; }
  /// Distance between neighbours of a dimension, in elements.
  [[nodiscard]] int64_t stride(int dimension) const { return stride_[index(dimension)]; }
  [[nodiscard]] std::span<const int64_t> shape() const {
    return {shape_.data(), static_cast<size_t>(rank_)};
  }
  [[nodiscard]] int64_t num_elements() const;
  /// Number of rows of the last dimension: the product of all outer sizes.
  [[nodiscard]] int64_t num_rows() const;
  [[nodiscard]] int64_t num_bytes() const { return num_elements() * bytes_of(dtype_); }
  [[nodiscard]] bool is_contiguous() const;

  [[nodiscard]] std::byte* raw() const { return data_; }
  template <typename T>
  [[nodiscard]] T* data() const {
    check(kDTypeOf<T> == dtype_ || sizeof(T) == 1, "element type differs from the tensor's dtype");
    return reinterpret_cast<T*>(data_);
  }
  /// All elements of a contiguous tensor in host memory.
  template <typename T>
  [[nodiscard]] std::span<T> span() const {
    check(is_contiguous() && device_ == Device::cpu, "span() needs a contiguous host tensor");
    return {data<T>(), static_cast<size_t>(num_elements())};
  }

  /// `count` entries of `dimension` from `first` on; the other dimensions whole.
  [[nodiscard]] Tensor slice(int dimension, int64_t first, int64_t count) const;
  /// The same elements under another shape. The innermost run that is contiguous must allow it.
  [[nodiscard]] Tensor view(std::initializer_list<int64_t> shape) const;
  /// [..., inner] split into [..., outer, inner / outer]: heads out of a fused projection.
  [[nodiscard]] Tensor split_last(int64_t outer) const;
  /// [rows, inner]: all outer dimensions as one. They must be evenly strided.
  [[nodiscard]] Tensor as_rows() const;
  /// Distance between consecutive rows of as_rows(), in elements.
  [[nodiscard]] int64_t row_stride() const { return as_rows().stride(0); }

  /// "bf16 [3, 128]", for error messages.
  [[nodiscard]] std::string describe() const;

 private:
  [[nodiscard]] size_t index(int dimension) const {
    const int from_front = dimension < 0 ? dimension + rank_ : dimension;
    check(from_front >= 0 && from_front < rank_, "no such dimension");
    return static_cast<size_t>(from_front);
  }

  std::byte* data_ = nullptr;
  std::array<int64_t, kMaxRank> shape_{};
  std::array<int64_t, kMaxRank> stride_{};
  int rank_ = 0;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
};

}  // namespace glimpse
