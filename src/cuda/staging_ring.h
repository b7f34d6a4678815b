// Pinned host memory between host and card. Bytes are written into one slot by several threads
// while the copies of the slots before are under way, so that a checkpoint moves at the speed of
// the bus and no second copy of it is ever in host memory.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "base/thread_pool.h"

namespace glimpse::cuda {

class StagingRing {
 public:
  static constexpr int64_t kPinnedBytes = 16 << 20;   // small: WSL2 pins little memory
  static constexpr int64_t kSharedBytes = 384 << 10;  // of these, for shared()
  static constexpr int kSlots = 4;
  static constexpr int64_t kSlotBytes = (kPinnedBytes - kSharedBytes) / kSlots;

  explicit StagingRing(cudaStream_t stream);
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  /// Writes items [first, first + count) to `to`. Called from several threads.
  using Fill = std::function<void(int64_t first, int64_t count, std::byte* to)>;

  /// `count` items of `item_bytes` each to `device`, in stream order. Returns when the items were
  /// read, before they have arrived.
  void upload(int64_t count, int64_t item_bytes, std::byte* device, const Fill& fill);
  void upload(std::span<const std::byte> bytes, std::byte* device);
  /// The same beside the work that was issued before, and before what is issued after.
  void upload_early(std::span<const std::byte> bytes, std::byte* device);
  /// kSharedBytes of pinned memory that kernels may write.
  [[nodiscard]] std::byte* shared() const { return memory_ + kSlots * kSlotBytes; }
  /// Waits for all earlier work.
  void download(const std::byte* device, std::span<std::byte> bytes);

 private:
  struct Slot {
    std::byte* memory = nullptr;
    cudaEvent_t is_free = nullptr;
  };
  Slot& next_free_slot();

  cudaStream_t stream_;
  cudaStream_t early_stream_ = nullptr;
  std::byte* memory_ = nullptr;
  std::array<Slot, kSlots> slots_;
  size_t next_ = 0;
  ThreadPool pool_;
};

}  // namespace glimpse::cuda
