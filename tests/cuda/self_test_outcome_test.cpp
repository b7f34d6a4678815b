// The kept outcome of the kernels' self-test: no GPU needed.
#include "cuda/self_test_outcome.h"

#include <fstream>

#include <gmock/gmock.h>

namespace glimpse::cuda {
namespace {

namespace fs = std::filesystem;

class SelfTestOutcome : public ::testing::Test {
 protected:
  void SetUp() override { fs::remove_all(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_ = fs::path(::testing::TempDir()) / "glimpse_self_test_outcome";
  fs::path file_ = folder_ / "deep" / "self-test";
};

TEST_F(SelfTestOutcome, IsReadBackForItsKeyOnly) {
  write_outcome(file_, "card 1", {Family::gemv, Family::attention_vision});
  const auto kept = read_outcome(file_, "card 1");
  ASSERT_TRUE(kept.has_value());
  EXPECT_THAT(*kept, ::testing::ElementsAre(Family::gemv, Family::attention_vision));
  EXPECT_FALSE(read_outcome(file_, "card 2").has_value());
}

TEST_F(SelfTestOutcome, SuccessIsKeptToo) {
  write_outcome(file_, "card", {});
  ASSERT_TRUE(read_outcome(file_, "card").has_value());
  EXPECT_TRUE(read_outcome(file_, "card")->empty());
}

TEST_F(SelfTestOutcome, AMissingOrDamagedFileIsNoOutcome) {
  EXPECT_FALSE(read_outcome(file_, "card").has_value());
  EXPECT_FALSE(read_outcome({}, "card").has_value());
  fs::create_directories(file_.parent_path());
  std::ofstream(file_) << "card\nno_such_family\n";
  EXPECT_FALSE(read_outcome(file_, "card").has_value());
}

TEST_F(SelfTestOutcome, AFileThatCannotBeWrittenIsNotAnError) {
  write_outcome({}, "card", {});
  write_outcome("/proc/no/such/place", "card", {});
  EXPECT_FALSE(read_outcome("/proc/no/such/place", "card").has_value());
}

TEST_F(SelfTestOutcome, TheKeyChangesWithCardAndDriver) {
  EXPECT_NE(outcome_key("A", 13000), outcome_key("B", 13000));
  EXPECT_NE(outcome_key("A", 13000), outcome_key("A", 12080));
  EXPECT_EQ(outcome_key("A", 13000), outcome_key("A", 13000));
}

}  // namespace
}  // namespace glimpse::cuda
