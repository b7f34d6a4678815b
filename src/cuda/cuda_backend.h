// The door to the CUDA backend; includes no CUDA header. Where there is no nvcc, src/cuda/absent
// defines the same functions.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace glimpse {

struct CudaOptions {
  /// The plain kernels alone: the oracle of the others.
  bool plain_kernels_only = false;
};

/// Why a CUDA backend cannot be made for `device`, in one sentence; empty when it can.
[[nodiscard]] std::string why_no_cuda(int device);

/// Of a device for which why_no_cuda() is empty.
[[nodiscard]] GpuInfo read_gpu_info(int device);

/// Throws Error(device) with why_no_cuda() when it cannot be made.
[[nodiscard]] std::unique_ptr<Backend> create_cuda_backend(int device,
                                                           const CudaOptions& options = {});

}  // namespace glimpse
