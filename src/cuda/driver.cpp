// Whether this process can use a card, and why not. The CUDA runtime is linked statically and loads
// libcuda when it is first called: without a driver these functions answer, they do not fail.
#include "cuda/driver.h"

#include <cuda_runtime_api.h>

#include <charconv>
#include <cstdlib>
#include <vector>

#include <fmt/format.h>

#include "cuda/cuda_backend.h"
#include "cuda/cuda_context.h"

namespace glimpse {
namespace cuda {
namespace {

/// "80;86-real;120" as 80, 86, 120; words such as "native" are left out.
std::vector<int> parse_architectures(std::string_view list) {
  std::vector<int> result;
  while (!list.empty()) {
    const size_t end = list.find(';');
    const std::string_view item = list.substr(0, end);
    int value = 0;
    if (std::from_chars(item.data(), item.data() + item.size(), value).ec == std::errc()) {
      result.push_back(value);
    }
    list.remove_prefix(end == std::string_view::npos ? list.size() : end + 1);
  }
  return result;
}

}  // namespace

std::string why_not_capability(int major, int minor, std::string_view architectures) {
  const int capability = 10 * major + minor;
  if (capability < 80) {
    return fmt::format("compute capability {}.{} is below 8.0, the oldest that Glimpse uses", major,
                       minor);
  }
  const std::vector<int> built = parse_architectures(architectures);
  if (built.empty()) return {};
  for (const int architecture : built) {
    // Machine code runs on its own and later minor versions; the driver compiles the portable form
    // of an older major version.
    if (architecture <= capability) return {};
  }
  return fmt::format(
      "this build has kernels for compute capability {} only, the card has {}.{}: "
      "build with -DGLIMPSE_CUDA_ARCHITECTURES={}",
      architectures, major, minor, capability);
}

}  // namespace cuda

std::string why_no_cuda(int device) {
  // Every kernel is loaded with the module, none while running or recording a graph.
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    int version = 0;
    if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0) {
      return fmt::format(
          "the NVIDIA driver is for CUDA {}.{}, older than this build needs: update it",
          version / 1000, version % 1000 / 10);
    }
    return "no NVIDIA driver was found (libcuda.so.1)";
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return "the NVIDIA driver sees no GPU";
  }
  if (error != cudaSuccess) {
    return fmt::format("CUDA does not start: {}", cudaGetErrorString(error));
  }
  if (device < 0 || device >= count) {
    return fmt::format("there is no GPU {}; the highest number is {}", device, count - 1);
  }
  int major = 0;
  int minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return fmt::format("GPU {} does not answer", device);
  }
  return cuda::why_not_capability(major, minor, GLIMPSE_CUDA_ARCHITECTURES);
}

GpuInfo read_gpu_info(int device) {
  const cuda::CardInfo card = cuda::read_card(device);
  GpuInfo info{.name = card.name,
               .capability_major = card.major,
               .capability_minor = card.minor,
               .driver_version = card.driver_version};
  const std::optional<cuda::CardMemory> memory = cuda::read_memory(device);
  info.total_bytes = memory ? memory->total_bytes : card.total_bytes;
  info.free_bytes = memory ? memory->free_bytes : -1;
  return info;
}

}  // namespace glimpse
