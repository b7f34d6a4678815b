#include "cuda/graph_cache.h"

#include "cuda/cuda_context.h"

namespace glimpse::cuda {
namespace {

// Callers keep the number of keys small; more than this would be a leak of device memory.
constexpr size_t kMaxGraphs = 256;

}  // namespace

GraphCache::~GraphCache() {
  for (const auto& [key, graph] : graphs_) {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }
}

void GraphCache::replay(uint64_t key, const std::function<void()>& step) {
  if (is_recording_) return step();  // part of the step that is being recorded
  auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    if (graphs_.size() >= kMaxGraphs) return step();
    found = graphs_.emplace(key, record(step)).first;
  }
  if (found->second == nullptr) return step();
  require(cudaGraphLaunch(found->second, stream_), "starting a recorded step");
}

cudaGraphExec_t GraphCache::record(const std::function<void()>& step) {
  require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a step");
  is_recording_ = true;
  bool is_recordable = true;
  cudaGraph_t graph = nullptr;
  try {
    step();
  } catch (const NotRecordable&) {
    is_recordable = false;
  } catch (...) {
    is_recording_ = false;
    if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    throw;
  }
  is_recording_ = false;
  const cudaError_t error = cudaStreamEndCapture(stream_, &graph);
  cudaGraphExec_t executable = nullptr;
  if (error == cudaSuccess && is_recordable) {
    if (cudaGraphInstantiate(&executable, graph, 0) != cudaSuccess) executable = nullptr;
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();  // a failed recording is answered by plain launches
  return executable;
}

}  // namespace glimpse::cuda
