// What the planner lowers on a GPU when memory is short: only what was left open, in order, and
// never without saying so. Pure: no GPU is needed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/synthesize.h"
#include "runtime/memory_planner.h"

namespace glimpse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kMebi = int64_t{1} << 20;

class MemoryFitTest : public ::testing::Test {
 protected:
  MemoryPlan plan(const EngineOptions& options, int64_t free_bytes) const {
    return plan_memory(config_, {}, weights_, options, Device::cuda, free_bytes);
  }
  // A 2B model with room for 16 megapixels, so that everything can be lowered.
  static EngineOptions large() {
    EngineOptions options;
    options.max_sequences = 4;
    return options;
  }

  ModelConfig config_ = named_checkpoint_shape("2b").config;
  WeightFacts weights_{.text_bytes = 2000 * kMebi,
                       .vision_bytes = 768 * kMebi,
                       .streamed_vision_bytes = 10 * kMebi,
                       .vision_slot_bytes = 48 * kMebi};
};

TEST_F(MemoryFitTest, LowersNothingWhileItFits) {
  const MemoryPlan asked = plan(large(), 0);
  const MemoryPlan exact = plan(large(), asked.total_bytes());
  EXPECT_EQ(exact.shape.max_pixels, asked.shape.max_pixels);
  EXPECT_EQ(exact.notices, asked.notices);
}

TEST_F(MemoryFitTest, LowersInTheStatedOrderAndAnnouncesEachChoice) {
  const MemoryPlan asked = plan(large(), 0);
  int64_t limit = asked.total_bytes() - 1;
  std::vector<std::string> order;
  // One byte less than the plan before makes the next choice necessary, down to where nothing is
  // left; each plan obeys its limit.
  while (true) {
    MemoryPlan lowered;
    try {
      lowered = plan(large(), limit);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
      break;
    }
    ASSERT_LE(lowered.total_bytes(), limit);
    const std::string& last = lowered.notices.back();
    ASSERT_THAT(last, HasSubstr("to fit the memory, "));
    const std::string what = last.substr(19, 8);
    if (order.empty() || order.back() != what) order.push_back(what);
    limit = lowered.total_bytes() - 1;
  }
  EXPECT_THAT(order, ElementsAre("pictures", "the KV c", "vision w", "the cont"));
}

TEST_F(MemoryFitTest, LeavesAloneWhatWasAskedFor) {
  EngineOptions options = large();
  options.max_pixels = 2 * kMebi;
  options.kv_format = KvFormat::bf16;
  options.vision = VisionResidency::resident;
  options.context = 4096;
  const int64_t total = plan(options, 0).total_bytes();
  EXPECT_THROW(plan(options, total - 1), Error);
  options.vision = VisionResidency::automatic;
  const MemoryPlan lowered = plan(options, total - 1);
  EXPECT_TRUE(lowered.shape.streams_vision);
  EXPECT_EQ(lowered.shape.max_pixels, 2 * kMebi);
  EXPECT_EQ(lowered.shape.kv_dtype, DType::bf16);
  EXPECT_EQ(lowered.shape.context, 4096);
}

TEST_F(MemoryFitTest, VisionOnDemandKeepsTwoSlotsInTheArena) {
  EngineOptions options = large();
  const MemoryPlan resident = plan(options, 0);
  options.vision = VisionResidency::on_demand;
  const MemoryPlan streamed = plan(options, 0);
  EXPECT_EQ(streamed.bytes_of_item(kVisionWeightsItem), 10 * kMebi);
  const int64_t more =
      streamed.bytes_of_item(kActivationsItem) - resident.bytes_of_item(kActivationsItem);
  EXPECT_GE(more, 0);
  EXPECT_LE(more, 2 * 48 * kMebi);
}

TEST_F(MemoryFitTest, OnTheCpuOnDemandIsAnnouncedAsWithoutEffect) {
  EngineOptions options;
  options.vision = VisionResidency::on_demand;
  const MemoryPlan plan =
      plan_memory(config_, {.max_pixels = 1 << 20}, weights_, options, Device::cpu, 0);
  EXPECT_FALSE(plan.shape.streams_vision);
  EXPECT_THAT(plan.notices, ElementsAre(HasSubstr("no effect on the CPU")));
}

}  // namespace
}  // namespace glimpse
