// glimpse doctor: what this machine has, what is missing, and the commands that mend it.
#include <cmath>

#include <fmt/format.h>

#include "command.h"
#include "glimpse/doctor.h"

namespace glimpse {
namespace {

void print_line(std::string_view name, const std::string& value) {
  fmt::print("{:<20} {}\n", name, value);
}

void print_gpu(const GpuReport& gpu) {
  print_line("card", fmt::format("{}, compute capability {}", gpu.name, gpu.compute_capability));
  print_line("CUDA of the driver", gpu.cuda_version);
  print_line(
      "video memory",
      gpu.used_bytes < 0
          ? fmt::format("{} MiB", gpu.memory_bytes >> 20)
          : fmt::format("{} MiB, of which the driver, the desktop and other programs use {} MiB",
                        gpu.memory_bytes >> 20, gpu.used_bytes >> 20));
  if (!gpu.fault.empty()) return;
  print_line("bus",
             fmt::format("{:.1f} GB/s to the card, {:.1f} GB/s back",
                         gpu.upload_gigabytes_per_second, gpu.download_gigabytes_per_second));
  print_line("self-tests",
             gpu.warnings.empty() ? "every kernel family agrees with its plain one" : "see below");
}

void print_report(const MachineReport& report) {
  print_line("system", report.system + (report.is_wsl ? ", WSL2" : ""));
  print_line("NVIDIA card", report.has_nvidia_card ? "yes" : "none found");
  print_line("driver", !report.driver.empty() ? report.driver
                       : report.has_libcuda   ? "libcuda.so.1 is there"
                                              : "none (no libcuda.so.1)");
  print_line("this build", report.is_built_with_cuda ? "with CUDA" : "without CUDA");
  if (report.gpu) {
    print_gpu(*report.gpu);
  } else {
    print_line("GPU", "not used: " + report.why_no_gpu);
    print_line("bus, self-tests", "need a GPU that answers");
  }
  print_line("model", report.model_folder);
  if (report.disk_megabytes_per_second > 0) {
    print_line("its disk", fmt::format("{:.0f} MB/s", report.disk_megabytes_per_second));
  }
  for (const Finding& finding : report.findings) {
    fmt::print("\n{}\n", finding.problem);
    for (const std::string& command : finding.commands) fmt::print("  {}\n", command);
  }
}

double rounded(double value) {
  return std::round(value * 10) / 10;
}

Json gpu_json(const GpuReport& gpu) {
  return {{"name", gpu.name},
          {"compute_capability", gpu.compute_capability},
          {"cuda_version", gpu.cuda_version},
          {"memory_bytes", gpu.memory_bytes},
          {"used_bytes", gpu.used_bytes},
          {"upload_gb_per_second", rounded(gpu.upload_gigabytes_per_second)},
          {"download_gb_per_second", rounded(gpu.download_gigabytes_per_second)},
          {"fault", gpu.fault},
          {"self_test_warnings", gpu.warnings}};
}

Json to_json(const MachineReport& report) {
  Json findings = Json::array();
  for (const Finding& finding : report.findings) {
    findings.push_back({{"problem", finding.problem}, {"commands", finding.commands}});
  }
  return {{"system", report.system},
          {"wsl2", report.is_wsl},
          {"nvidia_card", report.has_nvidia_card},
          {"libcuda", report.has_libcuda},
          {"driver", report.driver},
          {"built_with_cuda", report.is_built_with_cuda},
          {"why_no_gpu", report.why_no_gpu},
          {"gpu", report.gpu ? gpu_json(*report.gpu) : Json()},
          {"model_folder", report.model_folder},
          {"disk_mb_per_second", rounded(report.disk_megabytes_per_second)},
          {"findings", findings}};
}

int run(const std::string& model, bool json) {
  const MachineReport report = examine_machine(model);
  if (json) {
    print_json_line(to_json(report));
  } else {
    print_report(report);
  }
  return 0;
}

}  // namespace

void add_doctor_command(CLI::App& program, int& result) {
  const auto model = std::make_shared<std::string>();
  const auto json = std::make_shared<bool>(false);
  CLI::App* app = program.add_subcommand(
      "doctor",
      "Examine the GPU, its driver and the disk; say what is missing and how to mend it.");
  app->add_option("--model", *model,
                  "checkpoint whose disk is measured (default: the bundled demo)");
  app->add_flag("--json", *json, "one JSON object");
  app->callback([model, json, &result] { result = run(*model, *json); });
}

}  // namespace glimpse
