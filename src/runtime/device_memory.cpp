// How large the card is, asked before an engine exists.
#include "glimpse/device_memory.h"

#include <optional>

#include "backend/backend.h"

namespace glimpse {

int64_t gpu_memory_bytes(const EngineOptions& options) {
  if (options.device == DeviceChoice::cpu) return 0;
  const std::optional<GpuInfo> gpu = find_gpu(options.cuda_device);
  return gpu ? gpu->total_bytes : 0;
}

}  // namespace glimpse
