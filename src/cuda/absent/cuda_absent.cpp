// Linked instead of src/cuda when the program was built without nvcc.
#include "cuda/cuda_backend.h"

namespace glimpse {

std::string why_no_cuda(int) {
  return "this build has no CUDA backend (nvcc 12.8 or newer was not found)";
}

GpuInfo read_gpu_info(int) {
  return {};
}

std::unique_ptr<Backend> create_cuda_backend(int device, const CudaOptions&) {
  throw Error(ErrorCode::device, why_no_cuda(device),
              "install a CUDA toolkit of 12.8 or newer and build again, or use --device cpu");
}

}  // namespace glimpse
