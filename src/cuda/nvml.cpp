#include "cuda/nvml.h"

#include <dlfcn.h>

namespace glimpse::cuda {
namespace {

// The few declarations of nvml.h that are needed; its functions and structs are a stable interface.
using NvmlDevice = struct NvmlDeviceState*;
struct NvmlMemory {
  unsigned long long total;
  unsigned long long free;
  unsigned long long used;
};

class Library {
 public:
  Library() {
    for (const char* name : {"libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"}) {
      if (handle_ == nullptr) handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
  }
  ~Library() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  template <typename Function>
  [[nodiscard]] Function* find(const char* name) const {
    return handle_ == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle_, name));
  }

 private:
  void* handle_ = nullptr;
};

}  // namespace

std::optional<CardMemory> read_card_memory(const std::string& pci_bus_id) {
  const Library library;
  const auto init = library.find<int()>("nvmlInit_v2");
  const auto shutdown = library.find<int()>("nvmlShutdown");
  const auto get_device =
      library.find<int(const char*, NvmlDevice*)>("nvmlDeviceGetHandleByPciBusId_v2");
  const auto get_memory = library.find<int(NvmlDevice, NvmlMemory*)>("nvmlDeviceGetMemoryInfo");
  if (init == nullptr || shutdown == nullptr || get_device == nullptr || get_memory == nullptr) {
    return std::nullopt;
  }
  if (init() != 0) return std::nullopt;
  NvmlDevice device = nullptr;
  NvmlMemory memory{};
  const bool is_known =
      get_device(pci_bus_id.c_str(), &device) == 0 && get_memory(device, &memory) == 0;
  shutdown();
  if (!is_known) return std::nullopt;
  return CardMemory{static_cast<int64_t>(memory.total), static_cast<int64_t>(memory.free)};
}

}  // namespace glimpse::cuda
