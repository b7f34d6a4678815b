#include "cuda/staging_ring.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "cuda/cuda_context.h"

namespace glimpse::cuda {
namespace {

// Two or three threads read mapped files faster than the bus takes them.
int fill_threads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 4);
}

constexpr int64_t kGrainBytes = 512 << 10;

}  // namespace

StagingRing::StagingRing(cudaStream_t stream) : stream_(stream), pool_(fill_threads()) {
  void* memory = nullptr;
  require(cudaMallocHost(&memory, kPinnedBytes), "allocating 16 MiB of pinned host memory");
  memory_ = static_cast<std::byte*>(memory);
  require(cudaStreamCreateWithFlags(&early_stream_, cudaStreamNonBlocking), "making a stream");
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].memory = memory_ + static_cast<int64_t>(i) * kSlotBytes;
    require(cudaEventCreateWithFlags(&slots_[i].is_free, cudaEventDisableTiming),
            "making an event");
  }
}

StagingRing::~StagingRing() {
  cudaStreamSynchronize(stream_);
  if (early_stream_ != nullptr) {
    cudaStreamSynchronize(early_stream_);
    cudaStreamDestroy(early_stream_);
  }
  for (const Slot& slot : slots_) {
    if (slot.is_free != nullptr) cudaEventDestroy(slot.is_free);
  }
  cudaFreeHost(memory_);
}

StagingRing::Slot& StagingRing::next_free_slot() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  require(cudaEventSynchronize(slot.is_free), "waiting for a copy to the GPU");
  return slot;
}

void StagingRing::upload(int64_t count, int64_t item_bytes, std::byte* device, const Fill& fill) {
  check(item_bytes <= kSlotBytes, "an item is larger than a slot of the staging ring");
  const int64_t slot_items = kSlotBytes / item_bytes;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / item_bytes);
  for (int64_t first = 0; first < count; first += slot_items) {
    const int64_t items = std::min(slot_items, count - first);
    Slot& slot = next_free_slot();
    pool_.parallel_for(items, grain, [&](int64_t begin, int64_t end) {
      fill(first + begin, end - begin, slot.memory + begin * item_bytes);
    });
    require(
        cudaMemcpyAsync(device + first * item_bytes, slot.memory,
                        static_cast<size_t>(items * item_bytes), cudaMemcpyHostToDevice, stream_),
        "copying to the GPU");
    require(cudaEventRecord(slot.is_free, stream_), "recording an event");
  }
}

void StagingRing::upload(std::span<const std::byte> bytes, std::byte* device) {
  upload(static_cast<int64_t>(bytes.size()), 1, device,
         [&](int64_t first, int64_t count, std::byte* to) {
           std::memcpy(to, bytes.data() + first, static_cast<size_t>(count));
         });
}

// A copy in the order of the stream would stand between two steps for 3 to 9 us.
void StagingRing::upload_early(std::span<const std::byte> bytes, std::byte* device) {
  for (size_t first = 0; first < bytes.size(); first += kSlotBytes) {
    const size_t count = std::min(bytes.size() - first, static_cast<size_t>(kSlotBytes));
    Slot& slot = next_free_slot();
    std::memcpy(slot.memory, bytes.data() + first, count);
    require(
        cudaMemcpyAsync(device + first, slot.memory, count, cudaMemcpyHostToDevice, early_stream_),
        "copying to the GPU");
    require(cudaEventRecord(slot.is_free, early_stream_), "recording an event");
    require(cudaStreamWaitEvent(stream_, slot.is_free, 0), "ordering two streams");
  }
}

void StagingRing::download(const std::byte* device, std::span<std::byte> bytes) {
  for (size_t first = 0; first < bytes.size(); first += kSlotBytes) {
    const size_t count = std::min(bytes.size() - first, static_cast<size_t>(kSlotBytes));
    Slot& slot = next_free_slot();
    require(cudaMemcpyAsync(slot.memory, device + first, count, cudaMemcpyDeviceToHost, stream_),
            "copying from the GPU");
    require(cudaStreamSynchronize(stream_), "waiting for the GPU");
    std::memcpy(bytes.data() + first, slot.memory, count);
  }
}

}  // namespace glimpse::cuda
