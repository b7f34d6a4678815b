// What every part of the CUDA backend shares: the card, the stream, errors, and the memory that
// kernels need for themselves. Includes only the runtime's C header, so plain C++ files use it.
#pragma once

#include <cuda_runtime_api.h>

#include <optional>
#include <string>
#include <string_view>

#include "cuda/family.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/nvml.h"
#include "tensor/arena.h"
#include "tensor/tensor.h"

namespace glimpse::cuda {

/// Throws Error(device) naming `what` when `error` is one. A CUDA error of this kind outlives the
/// call: the process should end.
void require(cudaError_t error, std::string_view what);

struct CardInfo {
  int device = 0;
  std::string name;
  int major = 0;
  int minor = 0;
  int num_multiprocessors = 0;
  int shared_bytes_per_multiprocessor = 0;
  int shared_bytes_per_block = 0;  // with the opt-in
  int64_t total_bytes = 0;
  int driver_version = 0;  // 13000 is CUDA 13.0
};
[[nodiscard]] CardInfo read_card(int device);
/// The card's memory, read without making a context; empty where the driver does not tell.
[[nodiscard]] std::optional<CardMemory> read_memory(int device);

/// The card, one stream on it, and which kernel families may be used. One thread at a time.
class CudaContext {
 public:
  CudaContext(const CardInfo& card, bool plain_kernels_only);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  /// The calling thread uses this card from now on: CUDA keeps that per thread.
  void make_current() const;

  [[nodiscard]] const CardInfo& card() const { return card_; }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  /// The stream, for launchers whose kernels may overlap the end of the one before.
  [[nodiscard]] LaunchStream launch_stream() const { return {stream_, overlaps_}; }
  [[nodiscard]] Buffer allocate(int64_t num_bytes, std::string_view name) const;
  /// False: the plain kernel stands in.
  [[nodiscard]] bool uses(Family family) const { return enabled_[static_cast<size_t>(family)]; }
  void set_enabled(Family family, bool enabled) { enabled_[static_cast<size_t>(family)] = enabled; }
  /// sampling_workspace_bytes() on the device, its counters zero between launches.
  [[nodiscard]] void* sampling_workspace() const { return sampling_workspace_.data(); }
  /// decode_workspace_bytes() on the device, zeros between steps.
  [[nodiscard]] void* decode_workspace() const { return decode_workspace_.data(); }
  /// gemm_workspace_bytes() on the device, its counters zero between products.
  [[nodiscard]] void* gemm_workspace() const { return gemm_workspace_.data(); }

 private:
  [[nodiscard]] Buffer allocate_zeros(int64_t num_bytes, std::string_view name) const;

  CardInfo card_;
  cudaStream_t stream_ = nullptr;
  bool overlaps_ = false;
  bool enabled_[kNumFamilies] = {};
  Buffer sampling_workspace_;
  Buffer decode_workspace_;
  Buffer gemm_workspace_;
};

[[nodiscard]] Element element_of(DType dtype);
/// Rank 3 as [tokens, heads, dim] with any strides; other ranks as evenly strided rows.
[[nodiscard]] Rows rows_of(const Tensor& tensor);
/// Null for an empty tensor.
template <typename T>
[[nodiscard]] T* pointer_of(const Tensor& tensor) {
  return tensor.empty() ? nullptr : tensor.data<T>();
}

}  // namespace glimpse::cuda
