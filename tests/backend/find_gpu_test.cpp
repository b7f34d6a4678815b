// What is said of a GPU before anything runs on it.
#include <gtest/gtest.h>

#include "backend/backend.h"
#include "cpu/cpu_backend.h"

namespace glimpse {
namespace {

TEST(FindGpu, AGpuThatIsNotThereComesWithAReason) {
  constexpr int kNoSuchDevice = 4096;
  std::string why_not;
  EXPECT_FALSE(find_gpu(kNoSuchDevice, &why_not).has_value());
  EXPECT_NE(why_not, "");
}

TEST(FindGpu, AGpuOrAReason) {
  std::string why_not;
  const std::optional<GpuInfo> gpu = find_gpu(0, &why_not);
  ASSERT_NE(gpu.has_value(), !why_not.empty());
  if (!gpu) GTEST_SKIP() << why_not;
  EXPECT_NE(gpu->name, "");
  EXPECT_GE(gpu->capability_major, 8);
  EXPECT_GT(gpu->total_bytes, int64_t{1} << 30);
  EXPECT_LE(gpu->free_bytes, gpu->total_bytes);
  const auto backend = create_backend({.choice = BackendOptions::Choice::cuda});
  const DeviceMemory memory = backend->memory();
  EXPECT_GT(memory.own_bytes, 0);
  EXPECT_GT(memory.free_bytes, 0);
  EXPECT_TRUE(backend->warnings().empty()) << backend->warnings().front();
}

TEST(FindGpu, HostMemoryIsNotLimited) {
  EXPECT_EQ(create_cpu_backend(1)->memory().total_bytes, 0);
}

}  // namespace
}  // namespace glimpse
