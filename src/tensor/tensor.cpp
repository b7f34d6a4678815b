#include "tensor/tensor.h"

#include <fmt/ranges.h>

namespace glimpse {

Tensor::Tensor(const void* data, DType dtype, Device device, std::span<const int64_t> shape)
    : data_(static_cast<std::byte*>(const_cast<void*>(data))),
      rank_(static_cast<int>(shape.size())),
      dtype_(dtype),
      device_(device) {
  check(shape.size() >= 1 && shape.size() <= kMaxRank, "a tensor has 1 to 4 dimensions");
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    check(shape[i] >= 0, "a dimension is negative");
    shape_[i] = shape[i];
    stride_[i] = stride;
    stride *= shape[i];
  }
}

int64_t Tensor::num_elements() const {
  if (rank_ == 0) return 0;
  int64_t count = 1;
  for (const int64_t size : shape()) count *= size;
  return count;
}

int64_t Tensor::num_rows() const {
  if (rank_ == 0) return 0;
  int64_t count = 1;
  for (int i = 0; i + 1 < rank_; ++i) count *= size(i);
  return count;
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int i = rank_ - 1; i >= 0; --i) {
    if (size(i) != 1 && stride(i) != expected) return false;
    expected *= size(i);
  }
  return true;
}

Tensor Tensor::slice(int dimension, int64_t first, int64_t count) const {
  const size_t i = index(dimension);
  check(first >= 0 && count >= 0 && first + count <= shape_[i], "slice leaves the tensor");
  Tensor part = *this;
  part.data_ += first * stride_[i] * bytes_of(dtype_);
  part.shape_[i] = count;
  return part;
}

Tensor Tensor::view(std::initializer_list<int64_t> shape) const {
  check(is_contiguous(), "view() needs a contiguous tensor");
  Tensor result(data_, dtype_, device_, shape);
  check(result.num_elements() == num_elements(), "view() changes the number of elements");
  return result;
}

Tensor Tensor::split_last(int64_t outer) const {
  check(rank_ >= 1 && rank_ < kMaxRank && outer > 0 && size(-1) % outer == 0,
        "split_last() needs an even split and room for a dimension");
  const auto last = static_cast<size_t>(rank_ - 1);
  Tensor result = *this;
  const int64_t inner = shape_[last] / outer;
  result.rank_ = rank_ + 1;
  result.shape_[last] = outer;
  result.shape_[last + 1] = inner;
  result.stride_[last] = inner * stride_[last];
  result.stride_[last + 1] = stride_[last];
  return result;
}

Tensor Tensor::as_rows() const {
  check(rank_ >= 1, "as_rows() of an empty tensor");
  Tensor result = *this;
  result.rank_ = 2;
  const auto last = static_cast<size_t>(rank_ - 1);
  result.shape_ = {num_rows(), shape_[last], 0, 0};
  // The outermost dimensions of size 1 carry no stride; the others must nest evenly.
  int64_t row_stride = 0;
  int64_t expected = 0;
  for (int i = rank_ - 2; i >= 0; --i) {
    if (size(i) == 1) continue;
    if (row_stride == 0) {
      row_stride = stride(i);
    } else {
      check(stride(i) == expected, "as_rows(): the outer dimensions are not evenly strided");
    }
    expected = stride(i) * size(i);
  }
  result.stride_ = {row_stride != 0 ? row_stride : shape_[last], stride_[last], 0, 0};
  return result;
}

std::string Tensor::describe() const {
  return fmt::format("{} [{}]", name_of(dtype_), fmt::join(shape(), ", "));
}

}  // namespace glimpse
