// What the planner lowers on a GPU when memory is short: only what was left open, in order, and
// never without saying so. Pure: no GPU is needed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/synthesize.h"
#include "runtime/memory_fit.h"

namespace glimpse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kMebi = int64_t{1} << 20;
const ImageProcessorConfig kPictures;

class MemoryFitTest : public ::testing::Test {
 protected:
  MemoryPlan plan(const EngineOptions& options, int64_t free_bytes) const {
    return plan_memory(inputs(free_bytes), options);
  }
  PlanInputs inputs(int64_t free_bytes) const {
    return {config_, kPictures, weights_, {.device = Device::cuda, .free_bytes = free_bytes}};
  }
  // A 2B model with room for 16 megapixels, so that everything can be lowered.
  static EngineOptions large() {
    EngineOptions options;
    options.max_sequences = 4;
    options.fewer_sequences = true;
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
  EXPECT_THAT(order,
              ElementsAre("pictures", "the KV c", "vision w", "at most ", "requests", "the cont"));
}

TEST_F(MemoryFitTest, LeavesAloneWhatWasAskedFor) {
  EngineOptions options = large();
  options.max_pixels = 2 * kMebi;
  options.kv_format = KvFormat::bf16;
  options.vision = VisionResidency::resident;
  options.fewer_sequences = false;
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

TEST_F(MemoryFitTest, SequencesThatWereAskedForStay) {
  EngineOptions options = large();
  options.fewer_sequences = false;
  options.context = 4096;
  const int64_t least = lower_to_fit(inputs(0), options, 1).total_bytes();
  EXPECT_EQ(plan(options, least).shape.max_sequences, 4);
  EXPECT_THROW(plan(options, least - 1), Error);
  options.fewer_sequences = true;
  EXPECT_EQ(plan(options, least - 1).shape.max_sequences, 2);
}

TEST_F(MemoryFitTest, TheCapCountsTheContextAndEveryPiece) {
  const int64_t total = plan(large(), 0).total_bytes();
  PlanInputs with_context = inputs(0);
  with_context.target.context_bytes = 572 * kMebi;
  const MemoryPlan larger = plan_memory(with_context, large());
  EXPECT_EQ(larger.total_bytes(), total + 572 * kMebi);
  EXPECT_EQ(larger.bytes_of_item(kContextItem), 572 * kMebi);
  for (const MemoryItem& item : larger.items) {
    EXPECT_EQ(item.bytes % (2 * kMebi), 0) << item.name;
  }
  EngineOptions capped = large();
  capped.memory_cap_bytes = total;
  EXPECT_LE(plan_memory(with_context, capped).total_bytes(), total);
}

// What is said to fit fits, and one more of it does not.
TEST_F(MemoryFitTest, TheMostThatFitsIsTheMost) {
  EngineOptions options = large();
  options.max_pixels = 512 * 1024;
  options.context = 2048;
  const EngineShape shape = plan(options, 0).shape;
  const int64_t limit = plan(options, 0).total_bytes() + 300 * kMebi;
  const WhatFits most = find_what_fits(inputs(limit), options, shape, limit);
  const auto fits = [&](const auto& change) {
    EngineOptions changed = pinned_options(options, shape);
    change(changed);
    return plan_as_asked(inputs(limit), changed).total_bytes() <= limit;
  };
  EXPECT_GT(most.longest_context, 2048);
  EXPECT_TRUE(fits([&](auto& o) { o.context = most.longest_context; }));
  EXPECT_FALSE(fits([&](auto& o) { o.context = most.longest_context + kKvPageTokens; }));
  EXPECT_GT(most.most_sequences, 4);
  EXPECT_TRUE(fits([&](auto& o) { o.max_sequences = most.most_sequences; }));
  EXPECT_FALSE(fits([&](auto& o) { o.max_sequences = most.most_sequences + 1; }));
  EXPECT_EQ(most.largest_picture, 2048 / 8 * 7 * 1024);  // bound by the context, not the memory
}

TEST_F(MemoryFitTest, ARefusalNamesThePartAndWhatWouldFit) {
  EngineOptions options = large();
  options.max_pixels = 1 << 20;
  options.kv_format = KvFormat::bf16;
  options.vision = VisionResidency::resident;
  options.context = 65536;
  options.fewer_sequences = false;
  try {
    static_cast<void>(plan(options, 7372 * kMebi));
    FAIL() << "it was planned";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    EXPECT_THAT(error.what(), HasSubstr("7372 MiB may be used: the kv cache takes 28672 MiB"));
    EXPECT_THAT(error.hint(), HasSubstr("--context "));
  }
  EXPECT_THROW(plan(options, 100 * kMebi), Error);
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
  const ImageProcessorConfig pictures{.max_pixels = 1 << 20};
  const MemoryPlan plan =
      plan_memory({config_, pictures, weights_, {.device = Device::cpu}}, options);
  EXPECT_FALSE(plan.shape.streams_vision);
  EXPECT_THAT(plan.notices, ElementsAre(HasSubstr("no effect on the CPU")));
}

}  // namespace
}  // namespace glimpse
