#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace glimpse {

/// A GPU as CUDA answers for it.
struct GpuReport {
  std::string name;
  std::string compute_capability;  ///< "12.0"
  std::string cuda_version;        ///< the newest that the driver knows: "13.0"
  int64_t memory_bytes = 0;
  int64_t used_bytes = 0;                  ///< by the desktop and other programs; -1: unknown
  double upload_gigabytes_per_second = 0;  ///< host to GPU, as weights are loaded
  double download_gigabytes_per_second = 0;
  std::string fault;  ///< why the backend does not start; empty: it does
  /// What the self-test of the kernel families says; empty: all agree with their plain kernels.
  std::vector<std::string> warnings;
};

/// Something that is missing or slow, and the commands that mend it.
struct Finding {
  std::string problem;
  std::vector<std::string> commands;
};

/// What `glimpse doctor` knows of a machine.
struct MachineReport {
  std::string system;  ///< "Debian GNU/Linux 12 (bookworm)"
  bool is_wsl = false;
  bool has_nvidia_card = false;  ///< on the PCI bus, or shared by Windows
  bool has_libcuda = false;
  std::string driver;  ///< its version; empty where the system does not tell
  bool is_built_with_cuda = false;
  std::string why_no_gpu;  ///< empty: `gpu` is there
  std::optional<GpuReport> gpu;
  std::string model_folder;
  std::string folder_system;             ///< "9p" where Windows' drives are mounted, else empty
  double disk_megabytes_per_second = 0;  ///< 0: there was nothing to read
  std::vector<Finding> findings;
};

/// Looks at GPU 0, its driver, and the folder of `model` (empty: the bundled checkpoint). Useful
/// without a GPU; never throws for what is missing, only Error(not_found) for the model.
[[nodiscard]] MachineReport examine_machine(const std::string& model);

}  // namespace glimpse
