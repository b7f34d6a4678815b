// Recorded steps. A step of a decoder is hundreds of launches; a CUDA graph of them starts with
// one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <unordered_map>

namespace glimpse::cuda {

/// Thrown by an operation that cannot be recorded (it needs the host) while a graph is recorded;
/// replay() then runs the step plainly, now and later.
struct NotRecordable {};

class GraphCache {
 public:
  explicit GraphCache(cudaStream_t stream) : stream_(stream) {}
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  /// Runs `step`: recorded the first time a key is seen, from the recording afterwards. A step that
  /// cannot be recorded runs as plain launches.
  void replay(uint64_t key, const std::function<void()>& step);
  [[nodiscard]] bool is_recording() const { return is_recording_; }

 private:
  /// Null when the step cannot be recorded.
  cudaGraphExec_t record(const std::function<void()>& step);

  cudaStream_t stream_;
  bool is_recording_ = false;
  std::unordered_map<uint64_t, cudaGraphExec_t> graphs_;
};

}  // namespace glimpse::cuda
