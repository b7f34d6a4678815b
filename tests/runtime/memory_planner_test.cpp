// The plan as a pure function: what options leave open is chosen, what cannot be is refused.
#include <gtest/gtest.h>

#include "paths.h"
#include "runtime/memory_planner.h"

namespace glimpse {
namespace {

using testing::demo_model_dir;

class MemoryPlannerTest : public ::testing::Test {
 protected:
  MemoryPlan plan(const EngineOptions& options, int64_t free_bytes = 0) const {
    const WeightFacts weights{.text_bytes = 1000};
    return plan_memory({config_, pictures_, weights, {.free_bytes = free_bytes}}, options);
  }
  ErrorCode refusal(const EngineOptions& options, int64_t free_bytes = 0) const {
    try {
      static_cast<void>(plan(options, free_bytes));
    } catch (const Error& error) {
      return error.code();
    }
    ADD_FAILURE() << "it was planned";
    return ErrorCode::internal;
  }

  ModelConfig config_ = ModelConfig::from_directory(demo_model_dir());
  ImageProcessorConfig pictures_ = ImageProcessorConfig::from_directory(demo_model_dir());
};

TEST_F(MemoryPlannerTest, ChoosesWhatIsLeftOpen) {
  const EngineShape shape = plan({}).shape;
  EXPECT_EQ(shape.context, 4096);
  EXPECT_EQ(shape.max_sequences, 1);
  EXPECT_EQ(shape.kv_pages, 4096 / kKvPageTokens);
  EXPECT_EQ(shape.arithmetic, Arithmetic::exact);
  EXPECT_EQ(shape.kv_dtype, DType::f32);
  EXPECT_EQ(shape.max_pixels, 147456);
  EXPECT_EQ(shape.max_picture_patches, 576);
}

TEST_F(MemoryPlannerTest, TheKvCacheIsCountedByHand) {
  EngineOptions options;
  options.context = 1000;
  options.max_sequences = 3;
  options.arithmetic = Arithmetic::fast;
  // 32 pages a sequence, 6 layers, keys and values of 2 heads of 128 in 2 bytes.
  EXPECT_EQ(plan(options).bytes_of_item(kKvItem), 3 * 32 * kKvPageTokens * 6 * 2 * 2 * 128 * 2);
  options.kv_format = KvFormat::fp8;
  EXPECT_EQ(plan(options).bytes_of_item(kKvItem), 3 * 32 * kKvPageTokens * 6 * 2 * 2 * (128 + 4));
}

TEST_F(MemoryPlannerTest, W8A8TakesRoomForTheCodesAndScalesOfTheWidestProduct) {
  EngineOptions options;
  options.context = 1024;
  options.arithmetic = Arithmetic::fast;
  const MemoryPlan fast = plan(options);
  options.arithmetic = Arithmetic::w8a8;
  const MemoryPlan w8a8 = plan(options);
  const int64_t widest = config_.text.intermediate_size;
  const auto aligned = [](int64_t bytes) {
    return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
  };
  const auto room = [&](int64_t rows) {
    return aligned(rows * widest) + aligned(widest / kScaleBlock * (rows + rows % 2) * 4);
  };
  EXPECT_EQ(w8a8.shape.kv_dtype, DType::bf16);
  // Prefill and decode steps have activations of their own.
  EXPECT_EQ(w8a8.bytes_of_item(kActivationsItem) - fast.bytes_of_item(kActivationsItem),
            room(w8a8.shape.max_rows()) + room(w8a8.shape.max_sequences));
}

TEST_F(MemoryPlannerTest, TheTotalIsTheSumOfTheItems) {
  const MemoryPlan result = plan({});
  int64_t sum = 0;
  for (const MemoryItem& item : result.items) {
    EXPECT_GT(item.bytes, 0) << item.name;
    sum += item.bytes;
  }
  EXPECT_EQ(result.total_bytes(), sum);
  EXPECT_EQ(result.bytes_of_item(kTextWeightsItem), 1000);
}

TEST_F(MemoryPlannerTest, LargerOptionsNeverTakeLess) {
  int64_t previous = 0;
  for (const int64_t context : {1024, 2048, 4096, 8192}) {
    EngineOptions options;
    options.context = context;
    const int64_t total = plan(options).total_bytes();
    EXPECT_GT(total, previous);
    previous = total;
  }
}

TEST_F(MemoryPlannerTest, PicturesAreLoweredToTheContextWithANotice) {
  EngineOptions options;
  options.context = 128;
  const MemoryPlan result = plan(options);
  EXPECT_EQ(result.shape.max_pixels, 112 * 1024);
  EXPECT_EQ(result.notices.size(), 1U);
}

TEST_F(MemoryPlannerTest, ACapThatIsTooSmallIsRefused) {
  const int64_t total = plan({}).total_bytes();
  EngineOptions capped;
  capped.memory_cap_bytes = total;
  EXPECT_EQ(plan(capped).total_bytes(), total);
  capped.memory_cap_bytes = total - 1;
  EXPECT_EQ(refusal(capped), ErrorCode::out_of_memory);
  EXPECT_EQ(refusal({}, total - 1), ErrorCode::out_of_memory);
}

TEST_F(MemoryPlannerTest, OptionsThatContradictTheModelAreRefused) {
  EngineOptions options;
  options.context = 40000;
  EXPECT_EQ(refusal(options), ErrorCode::invalid_argument);
  options = {};
  options.kv_tokens = 1000;
  EXPECT_EQ(refusal(options), ErrorCode::invalid_argument);
  options = {};
  options.max_pixels = 5'000'000;
  EXPECT_EQ(refusal(options), ErrorCode::invalid_argument);
  options = {};
  options.min_pixels = 200'000;
  options.max_pixels = 100'000;
  EXPECT_EQ(refusal(options), ErrorCode::invalid_argument);
  options = {};
  options.max_sequences = 100'000;
  EXPECT_EQ(refusal(options), ErrorCode::invalid_argument);
}

TEST_F(MemoryPlannerTest, ATextModelHasNoPictureMemory) {
  ModelConfig text = config_;
  text.vision.reset();
  const MemoryPlan result = plan_memory({text, pictures_, {}, {}}, {});
  EXPECT_EQ(result.bytes_of_item(kVisualStoreItem), 0);
  EXPECT_EQ(result.shape.max_picture_patches, 0);
}

}  // namespace
}  // namespace glimpse
