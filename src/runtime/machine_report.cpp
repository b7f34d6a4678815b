#include <dlfcn.h>
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>

#include <fmt/format.h>

#include "backend/backend.h"
#include "glimpse/engine.h"
#include "model/model_directory.h"
#include "runtime/diagnosis.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::string first_line_with(const fs::path& path, std::string_view words) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.find(words) != std::string::npos) return line;
  }
  return {};
}

// PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
std::string read_system() {
  const std::string line = first_line_with("/etc/os-release", "PRETTY_NAME=");
  const size_t begin = line.find('"');
  const size_t end = line.rfind('"');
  return begin == end ? "an unknown system" : line.substr(begin + 1, end - begin - 1);
}

bool is_wsl() {
  const fs::path release = "/proc/sys/kernel/osrelease";
  return !first_line_with(release, "microsoft").empty() ||
         !first_line_with(release, "Microsoft").empty();
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  ...": the first word of digits.
std::string read_driver() {
  const std::string line = first_line_with("/proc/driver/nvidia/version", "NVRM version:");
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  for (size_t begin = line.find("  "); begin != std::string::npos; begin = line.find(' ', begin)) {
    begin = line.find_first_not_of(' ', begin);
    if (begin == std::string::npos) break;
    const size_t end = line.find(' ', begin);
    if (is_digit(line[begin])) return line.substr(begin, end - begin);
  }
  return {};
}

bool has_nvidia_card(bool wsl) {
  std::error_code error;
  if (wsl && fs::exists("/dev/dxg", error) && fs::exists("/usr/lib/wsl/lib/libcuda.so.1", error)) {
    return true;
  }
  for (const auto& entry : fs::directory_iterator("/sys/bus/pci/devices", error)) {
    const bool is_nvidia = !first_line_with(entry.path() / "vendor", "0x10de").empty();
    const bool is_display = !first_line_with(entry.path() / "class", "0x03").empty();
    if (is_nvidia && is_display) return true;
  }
  return false;
}

bool has_libcuda() {
  for (const char* name : {"libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"}) {
    if (void* library = dlopen(name, RTLD_LAZY | RTLD_LOCAL)) {
      dlclose(library);
      return true;
    }
  }
  return false;
}

std::string version_text(int cuda_version) {
  return fmt::format("{}.{}", cuda_version / 1000, cuda_version % 1000 / 10);
}

// How fast the bus carries weights, through the ring that loads them.
void measure_bus(Backend& backend, GpuReport& report) {
  constexpr int64_t kBytes = int64_t{128} << 20;
  const Buffer buffer = backend.allocate(kBytes, "the test of the bus");
  const Tensor device(buffer.data(), DType::u8, backend.device(), {kBytes});
  std::vector<std::byte> host(static_cast<size_t>(kBytes), std::byte{1});
  const auto rate = [&](const auto& transfer) {
    transfer();  // the first touches pages and wakes the card
    const Clock::time_point begin = Clock::now();
    transfer();
    backend.synchronize();
    return static_cast<double>(kBytes) / 1e9 / seconds_since(begin);
  };
  report.upload_gigabytes_per_second = rate([&] { backend.upload(host, device); });
  report.download_gigabytes_per_second = rate([&] { backend.download(device, host); });
}

GpuReport examine_gpu(const GpuInfo& info) {
  GpuReport report;
  report.name = info.name;
  report.compute_capability = fmt::format("{}.{}", info.capability_major, info.capability_minor);
  report.cuda_version = version_text(info.driver_version);
  report.memory_bytes = info.total_bytes;
  report.used_bytes = info.free_bytes < 0 ? -1 : info.total_bytes - info.free_bytes;
  try {
    const auto backend = create_backend({.choice = BackendOptions::Choice::cuda});
    report.warnings = backend->warnings();
    measure_bus(*backend, report);
  } catch (const Error& error) {
    report.fault = error.what();
  }
  return report;
}

// ---- the model's folder -----------------------------------------------------------------------

fs::path largest_weights(const fs::path& folder) {
  fs::path largest;
  uintmax_t size = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() != ".safetensors" || !entry.is_regular_file(error)) continue;
    if (const uintmax_t bytes = entry.file_size(error); bytes > size) {
      largest = entry.path();
      size = bytes;
    }
  }
  return largest;
}

// Past the page cache where the file system allows that, else after asking to forget the file.
double measure_disk(const fs::path& path) {
  constexpr int64_t kPiece = 4 << 20;
  constexpr int64_t kMost = 256 << 20;
  constexpr double kLongest = 2;  // seconds
  int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (file < 0) file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  const std::unique_ptr<void, decltype(&std::free)> piece(
      std::aligned_alloc(4096, static_cast<size_t>(kPiece)), &std::free);
  const Clock::time_point begin = Clock::now();
  int64_t bytes = 0;
  while (bytes < kMost && seconds_since(begin) < kLongest) {
    const ssize_t count = ::read(file, piece.get(), static_cast<size_t>(kPiece));
    if (count <= 0) break;
    bytes += count;
  }
  ::close(file);
  return static_cast<double>(bytes) / 1e6 / seconds_since(begin);
}

std::string file_system_of(const fs::path& folder) {
  constexpr auto k9p = 0x01021997;
  struct statfs status {};
  return ::statfs(folder.c_str(), &status) == 0 && status.f_type == k9p ? "9p" : "";
}

}  // namespace

MachineReport examine_machine(const std::string& model) {
  MachineReport report;
  const fs::path folder =
      model.empty() ? bundled_model_directory() : resolve_model_directory(model);
  report.system = read_system();
  report.is_wsl = is_wsl();
  report.has_nvidia_card = has_nvidia_card(report.is_wsl);
  report.has_libcuda = has_libcuda();
  report.driver = read_driver();
  const std::optional<GpuInfo> gpu = find_gpu(0, &report.why_no_gpu);
  report.is_built_with_cuda = report.why_no_gpu.find("no CUDA backend") == std::string::npos;
  if (gpu) report.gpu = examine_gpu(*gpu);
  report.model_folder = fs::absolute(folder).lexically_normal().string();
  report.folder_system = file_system_of(folder);
  if (const fs::path weights = largest_weights(folder); !weights.empty()) {
    report.disk_megabytes_per_second = measure_disk(weights);
  }
  report.findings = diagnose(report);
  return report;
}

}  // namespace glimpse
