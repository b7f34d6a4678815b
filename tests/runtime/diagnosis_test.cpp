// What doctor concludes from a machine's facts; machines are made up, none is needed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/diagnosis.h"

namespace glimpse {
namespace {

using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

MachineReport healthy() {
  MachineReport report;
  report.system = "Ubuntu 24.04.1 LTS";
  report.has_nvidia_card = true;
  report.has_libcuda = true;
  report.is_built_with_cuda = true;
  report.gpu = GpuReport{.name = "a card", .memory_bytes = int64_t{8} << 30};
  report.disk_megabytes_per_second = 3000;
  report.model_folder = "/models/m";
  return report;
}

TEST(DiagnosisTest, AHealthyMachineHasNoFindings) {
  EXPECT_THAT(diagnose(healthy()), IsEmpty());
}

TEST(DiagnosisTest, WithoutACardNothingIsToBeInstalled) {
  MachineReport report = healthy();
  report.has_nvidia_card = report.has_libcuda = report.is_built_with_cuda = false;
  report.gpu.reset();
  const std::vector<Finding> findings = diagnose(report);
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_THAT(findings[0].problem, HasSubstr("the CPU answers"));
  EXPECT_THAT(findings[0].commands, IsEmpty());
}

TEST(DiagnosisTest, AMissingDriverIsInstalledWhereItBelongs) {
  MachineReport report = healthy();
  report.has_libcuda = false;
  report.gpu.reset();
  EXPECT_THAT(diagnose(report).at(0).commands, Contains("sudo ubuntu-drivers install"));
  report.system = "Debian GNU/Linux 12 (bookworm)";
  EXPECT_THAT(diagnose(report).at(0).commands, Contains(HasSubstr("nvidia-driver")));
  report.is_wsl = true;
  const Finding finding = diagnose(report).at(0);
  EXPECT_THAT(finding.problem, HasSubstr("Windows"));
  EXPECT_THAT(finding.commands, Not(Contains(HasSubstr("apt"))));
}

TEST(DiagnosisTest, ABuildWithoutCudaNamesTheToolkit) {
  MachineReport report = healthy();
  report.is_built_with_cuda = false;
  report.gpu.reset();
  const std::vector<Finding> findings = diagnose(report);
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_THAT(findings[0].problem, HasSubstr("nvcc 12.8"));
  EXPECT_THAT(findings[0].commands, Contains(HasSubstr("cuda-toolkit")));
}

TEST(DiagnosisTest, ADriverThatIsTooOldIsRepeated) {
  MachineReport report = healthy();
  report.gpu.reset();
  report.why_no_gpu = "the NVIDIA driver is for CUDA 11.4, older than this build needs: update it";
  EXPECT_EQ(diagnose(report).at(0).problem, report.why_no_gpu);
}

TEST(DiagnosisTest, AFailedSelfTestIsRepeated) {
  MachineReport report = healthy();
  report.gpu->warnings = {"prefill attention disagrees"};
  EXPECT_EQ(diagnose(report).at(0).problem, "prefill attention disagrees");
}

TEST(DiagnosisTest, ACrowdedCardIsTold) {
  MachineReport report = healthy();
  report.gpu->used_bytes = int64_t{3} << 30;
  EXPECT_THAT(diagnose(report).at(0).problem, HasSubstr("3072 MiB of the card's 8192 MiB"));
}

TEST(DiagnosisTest, AWindowsDriveUnderWslIsWarnedOf) {
  MachineReport report = healthy();
  report.is_wsl = true;
  report.model_folder = "/mnt/c/models/m";
  report.folder_system = "9p";
  const Finding finding = diagnose(report).at(0);
  EXPECT_THAT(finding.problem, HasSubstr("Windows drive"));
  EXPECT_THAT(finding.commands, Contains("cp -r '/mnt/c/models/m' ~/"));
  report.is_wsl = false;  // some other 9p mount: only its speed counts
  EXPECT_THAT(diagnose(report), IsEmpty());
}

TEST(DiagnosisTest, ASlowDiskIsTold) {
  MachineReport report = healthy();
  report.disk_megabytes_per_second = 100;
  EXPECT_THAT(diagnose(report).at(0).problem, HasSubstr("100 MB/s"));
}

}  // namespace
}  // namespace glimpse
