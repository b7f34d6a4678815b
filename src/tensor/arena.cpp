#include "tensor/arena.h"

#include <algorithm>

namespace glimpse {

Arena::Arena(Buffer buffer, std::string name)
    : buffer_(std::move(buffer)), name_(std::move(name)), device_(buffer_.device()) {}

Arena Arena::measuring(Device device) {
  Arena arena;
  arena.name_ = "measuring";
  arena.device_ = device;
  arena.measuring_ = true;
  return arena;
}

Tensor Arena::allocate(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor tensor(nullptr, dtype, device_, shape);
  const int64_t bytes = (tensor.num_bytes() + kAlignment - 1) / kAlignment * kAlignment;
  const int64_t first = used_;
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  if (measuring_) return tensor;
  check(used_ <= buffer_.num_bytes(),
        fmt::format("arena '{}' is full: {} of {} bytes used, {} more wanted", name_, first,
                    buffer_.num_bytes(), bytes));
  return {buffer_.data() + first, dtype, device_, shape};
}

void Arena::rewind(int64_t mark) {
  check(mark >= 0 && mark <= used_, "arena rewound forwards");
  used_ = mark;
}

}  // namespace glimpse
