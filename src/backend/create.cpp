// The one file that names the concrete backends, in priority order.
#include "backend/backend.h"
#include "cpu/cpu_backend.h"
#include "cuda/cuda_backend.h"

namespace glimpse {

std::optional<GpuInfo> find_gpu(int device, std::string* why_not) {
  const std::string reason = why_no_cuda(device);
  if (reason.empty()) return read_gpu_info(device);
  if (why_not != nullptr) *why_not = reason;
  return std::nullopt;
}

std::unique_ptr<Backend> create_backend(const BackendOptions& options, std::string* why_not_cuda) {
  using Choice = BackendOptions::Choice;
  if (options.choice == Choice::cuda) return create_cuda_backend(options.cuda_device);
  if (options.choice == Choice::automatic) {
    const std::string reason = why_no_cuda(options.cuda_device);
    if (reason.empty()) return create_cuda_backend(options.cuda_device);
    if (why_not_cuda != nullptr) *why_not_cuda = reason;
  }
  return create_cpu_backend(options.num_threads);
}

}  // namespace glimpse
