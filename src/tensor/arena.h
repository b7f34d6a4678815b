// The two owners of tensor memory. Everything a step touches is carved from an Arena before the
// first token; nothing is allocated while running.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

#include "tensor/tensor.h"

namespace glimpse {

/// Owns one allocation of a backend. Movable only. Backend::allocate() makes them.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::byte* data, int64_t num_bytes, Device device, std::function<void(std::byte*)> release)
      : data_(data), num_bytes_(num_bytes), device_(device), release_(std::move(release)) {}
  ~Buffer() {
    if (data_ != nullptr) release_(data_);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    std::swap(device_, other.device_);
    std::swap(release_, other.release_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] int64_t num_bytes() const { return num_bytes_; }
  [[nodiscard]] Device device() const { return device_; }

 private:
  std::byte* data_ = nullptr;
  int64_t num_bytes_ = 0;
  Device device_ = Device::cpu;
  std::function<void(std::byte*)> release_;
};

/// Hands out tensors of one Buffer from front to back. A measuring arena has no memory: the same
/// code that lays out activations tells the memory planner how many bytes they take, so the plan
/// cannot differ from the truth.
class Arena {
 public:
  /// Every tensor starts on a multiple of this (bytes).
  static constexpr int64_t kAlignment = 256;

  explicit Arena(Buffer buffer, std::string name);
  /// An arena that only counts. Its tensors have null data and must not be touched.
  static Arena measuring(Device device);

  /// A contiguous, uninitialised tensor. Throws Error(internal) naming the arena when it is full.
  [[nodiscard]] Tensor allocate(DType dtype, std::initializer_list<int64_t> shape);

  [[nodiscard]] int64_t used_bytes() const { return used_; }
  /// The most that was ever in use at once.
  [[nodiscard]] int64_t peak_bytes() const { return peak_; }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] bool is_measuring() const { return measuring_; }

  /// Everything allocated since `mark` (an earlier used_bytes()) is given back.
  void rewind(int64_t mark);

 private:
  Arena() = default;

  Buffer buffer_;
  std::string name_;
  Device device_ = Device::cpu;
  bool measuring_ = false;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

/// Rewinds an arena to where it was when the scope was entered.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.used_bytes()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace glimpse
