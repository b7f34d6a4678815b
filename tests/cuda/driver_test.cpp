// Which cards a build can use, and that a machine without any is told why: no GPU needed.
#include "cuda/driver.h"

#include <gmock/gmock.h>

#include "cuda/cuda_backend.h"

namespace glimpse {
namespace {

using cuda::why_not_capability;
using ::testing::HasSubstr;

TEST(Driver, EveryCapabilityWithKernelsIsAccepted) {
  constexpr auto kAll = "80;86;89;90;120";
  for (const auto& [major, minor] : {std::pair{8, 0}, {8, 6}, {8, 9}, {9, 0}, {12, 0}}) {
    EXPECT_EQ(why_not_capability(major, minor, kAll), "") << major << '.' << minor;
  }
}

TEST(Driver, ACardNewerThanTheKernelsIsAccepted) {
  EXPECT_EQ(why_not_capability(12, 1, "80;120"), "");
}

TEST(Driver, ACardOlderThanTheKernelsIsToldWhatToBuild) {
  EXPECT_THAT(why_not_capability(8, 9, "120"), HasSubstr("-DGLIMPSE_CUDA_ARCHITECTURES=89"));
}

TEST(Driver, ACardBelowAmpereIsRefusedWhateverWasBuilt) {
  EXPECT_THAT(why_not_capability(7, 5, "75"), HasSubstr("7.5 is below 8.0"));
}

TEST(Driver, SuffixesAndWordsInTheListAreUnderstood) {
  EXPECT_EQ(why_not_capability(9, 0, "80-real;90-virtual"), "");
  EXPECT_EQ(why_not_capability(9, 0, "native"), "");
  EXPECT_NE(why_not_capability(8, 0, "native;120-real"), "");
}

TEST(Driver, ADeviceThatIsNotThereIsAnErrorWithTheReason) {
  constexpr int kNoSuchDevice = 4096;
  const std::string reason = why_no_cuda(kNoSuchDevice);
  ASSERT_NE(reason, "");
  try {
    static_cast<void>(create_cuda_backend(kNoSuchDevice));
    FAIL() << "a backend was made";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::device);
    EXPECT_EQ(error.what(), reason);
    EXPECT_NE(error.hint(), "");
  }
}

}  // namespace
}  // namespace glimpse
