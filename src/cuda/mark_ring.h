// Points in the order of a stream that the host can wait for while later work is under way.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "backend/backend.h"
#include "cuda/cuda_context.h"

namespace glimpse::cuda {

class MarkRing {
 public:
  explicit MarkRing(cudaStream_t stream) : stream_(stream) {
    for (cudaEvent_t& event : events_) {
      require(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    }
  }
  ~MarkRing() {
    for (const cudaEvent_t event : events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }
  MarkRing(const MarkRing&) = delete;
  MarkRing& operator=(const MarkRing&) = delete;

  [[nodiscard]] Backend::Mark set() {
    const Backend::Mark mark = num_set_++;
    require(cudaEventRecord(event_of(mark), stream_), "recording an event");
    return mark;
  }
  void wait(Backend::Mark mark) {
    check(mark < num_set_ && num_set_ - mark <= Backend::kMaxMarks, "a mark was forgotten");
    require(cudaEventSynchronize(event_of(mark)), "waiting for the GPU");
  }

 private:
  [[nodiscard]] cudaEvent_t event_of(Backend::Mark mark) const {
    return events_[mark % Backend::kMaxMarks];
  }

  cudaStream_t stream_;
  std::array<cudaEvent_t, Backend::kMaxMarks> events_{};
  Backend::Mark num_set_ = 0;
};

}  // namespace glimpse::cuda
