#include "runtime/diagnosis.h"

#include <fmt/format.h>

namespace glimpse {
namespace {

// More than a desktop with a browser takes.
constexpr int64_t kMuchUsedBytes = int64_t{1536} << 20;
// Slower than this, a 2B model takes longer than ten seconds to come from the disk.
constexpr double kSlowDisk = 250;

Finding missing_driver(const MachineReport& report) {
  if (report.is_wsl) {
    return {"libcuda.so.1 is missing: under WSL2 the driver belongs to Windows, not into Linux",
            {"install NVIDIA's driver on Windows, then in PowerShell: wsl --update",
             "in PowerShell: wsl --shutdown"}};
  }
  if (report.system.find("Ubuntu") != std::string::npos) {
    return {"an NVIDIA card is there, its driver (libcuda.so.1) is not",
            {"sudo apt-get update", "sudo ubuntu-drivers install", "sudo reboot"}};
  }
  return {
      "an NVIDIA card is there, its driver (libcuda.so.1) is not; on Debian it is in the "
      "section non-free",
      {"sudo apt-get update", "sudo apt-get install linux-headers-amd64 nvidia-driver",
       "sudo reboot"}};
}

Finding missing_backend(const MachineReport& report) {
  return {fmt::format("this build has no CUDA backend: it needs nvcc 12.8 or newer when it is "
                      "built (Ubuntu's nvidia-cuda-toolkit is too old); the released package has "
                      "the backend and needs no nvcc"),
          {fmt::format("add NVIDIA's package source for {} as "
                       "https://docs.nvidia.com/cuda/cuda-installation-guide-linux says",
                       report.is_wsl ? "WSL-Ubuntu" : report.system),
           "sudo apt-get update && sudo apt-get install cuda-toolkit", "./glimpse doctor"}};
}

void diagnose_gpu(const MachineReport& report, std::vector<Finding>& findings) {
  if (!report.has_nvidia_card && !report.has_libcuda) {
    findings.push_back({"no NVIDIA card was found: the CPU answers", {}});
    return;
  }
  if (!report.has_libcuda) findings.push_back(missing_driver(report));
  if (!report.is_built_with_cuda) findings.push_back(missing_backend(report));
  if (report.has_libcuda && report.is_built_with_cuda && !report.gpu) {
    findings.push_back({report.why_no_gpu, {}});
  }
}

void diagnose_card(const GpuReport& gpu, std::vector<Finding>& findings) {
  if (!gpu.fault.empty()) findings.push_back({gpu.fault, {}});
  for (const std::string& warning : gpu.warnings) findings.push_back({warning, {}});
  if (gpu.used_bytes > kMuchUsedBytes) {
    findings.push_back({fmt::format("other programs use {} MiB of the card's {} MiB: a model has "
                                    "what they leave",
                                    gpu.used_bytes >> 20, gpu.memory_bytes >> 20),
                        {"nvidia-smi"}});
  }
}

void diagnose_disk(const MachineReport& report, std::vector<Finding>& findings) {
  if (report.is_wsl && report.folder_system == "9p") {
    findings.push_back(
        {fmt::format("{} is on a Windows drive, which WSL2 reads slowly: keep models "
                     "in Linux's own file system",
                     report.model_folder),
         {fmt::format("cp -r '{}' ~/", report.model_folder)}});
  } else if (report.disk_megabytes_per_second > 0 && report.disk_megabytes_per_second < kSlowDisk) {
    findings.push_back({fmt::format("{} is read at {:.0f} MB/s: the first start of a model waits "
                                    "for that; a faster disk starts sooner",
                                    report.model_folder, report.disk_megabytes_per_second),
                        {}});
  }
}

}  // namespace

std::vector<Finding> diagnose(const MachineReport& report) {
  std::vector<Finding> findings;
  diagnose_gpu(report, findings);
  if (report.gpu) diagnose_card(*report.gpu, findings);
  diagnose_disk(report, findings);
  return findings;
}

}  // namespace glimpse
