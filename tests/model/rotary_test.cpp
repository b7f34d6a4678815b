#include "model/rotary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace glimpse {
namespace {

using ::testing::ElementsAre;

TextConfig qwen_text() {
  TextConfig config;
  config.head_dim = 128;
  config.mrope_section = {24, 20, 20};
  return config;
}

TEST(RotaryAxes, InterleaveHeightAndWidthAndLeaveTheLastFourToTime) {
  const std::vector<int32_t> axes = rotary_axes(qwen_text());
  ASSERT_EQ(axes.size(), 64U);
  for (size_t i = 0; i < 60; ++i) EXPECT_EQ(axes[i], static_cast<int32_t>(i % 3)) << i;
  for (size_t i = 60; i < 64; ++i) EXPECT_EQ(axes[i], 0) << i;
  EXPECT_EQ(std::count(axes.begin(), axes.end(), 0), 24);
  EXPECT_EQ(std::count(axes.begin(), axes.end(), 1), 20);
  EXPECT_EQ(std::count(axes.begin(), axes.end(), 2), 20);
}

TEST(RotaryAxes, OfATextModelAreAllTime) {
  TextConfig config;
  config.head_dim = 96;
  EXPECT_EQ(rotary_axes(config), std::vector<int32_t>(48, 0));
}

TEST(InverseFrequencies, FallFromOneByEqualFactors) {
  const std::vector<float> frequencies = inverse_frequencies(5e6, 128);
  ASSERT_EQ(frequencies.size(), 64U);
  EXPECT_EQ(frequencies[0], 1.0F);
  for (size_t i = 0; i < 64; ++i) {
    const double exact = std::pow(5e6, -static_cast<double>(i) / 64);
    EXPECT_NEAR(frequencies[i] / exact, 1.0, 4 * 0x1p-24) << i;
  }
}

TEST(SequencePositions, FollowTheSpecificationsExample) {
  // Three text tokens, a picture of 2 x 3 merged blocks, two text tokens.
  const VisualSpan picture{.first = 3, .grid = {1, 4, 6}};
  const SequencePositions positions = sequence_positions(11, {&picture, 1}, 2);
  EXPECT_THAT(positions.axes[0], ElementsAre(0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7));
  EXPECT_THAT(positions.axes[1], ElementsAre(0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7));
  EXPECT_THAT(positions.axes[2], ElementsAre(0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7));
  EXPECT_EQ(positions.next_position, 8);
  EXPECT_EQ(positions.rope_delta(), -3);
}

TEST(SequencePositions, OfTextAreItsIndices) {
  const SequencePositions positions = sequence_positions(4, {}, 2);
  for (const auto& axis : positions.axes) EXPECT_THAT(axis, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(positions.rope_delta(), 0);
}

TEST(VisualSpans, AreFoundAlsoWhenTwoPicturesTouch) {
  const std::vector<int32_t> ids{1, 9, 9, 9, 9, 9, 9, 2};
  const std::vector<PatchGrid> grids{{1, 2, 4}, {1, 4, 4}};
  const std::vector<VisualSpan> spans = find_visual_spans(ids, 9, grids, 2);
  ASSERT_EQ(spans.size(), 2U);
  EXPECT_EQ(spans[0].first, 1);
  EXPECT_EQ(spans[1].first, 3);
}

TEST(VisualSpans, RefusePlaceholdersThatDoNotFitThePictures) {
  const std::vector<PatchGrid> one{{1, 4, 4}};
  const auto find = [](const std::vector<int32_t>& ids, const std::vector<PatchGrid>& grids) {
    return find_visual_spans(ids, 9, grids, 2);
  };
  EXPECT_THROW(find({1, 9, 9, 9, 2}, one), Error);        // one too few
  EXPECT_THROW(find({1, 9, 9, 9, 9, 9, 2}, one), Error);  // one too many
  EXPECT_THROW(find({9, 9, 1, 9, 9}, one), Error);        // torn apart
  EXPECT_THROW(find({1, 2, 3}, one), Error);              // none
  EXPECT_THROW(find({9}, {}), Error);                     // no picture
  EXPECT_THROW(find({1, 9, 9, 9}, one), Error);           // ends too early
  EXPECT_EQ(find({1, 2}, {}).size(), 0U);
}

TEST(PatchPositions, GoThroughMergeBlocks) {
  const std::vector<PatchPosition> positions = patch_positions({1, 2, 4}, 2);
  std::vector<std::pair<int, int>> pairs;
  for (const PatchPosition& position : positions) pairs.push_back({position.row, position.column});
  EXPECT_THAT(pairs,
              ElementsAre(std::pair{0, 0}, std::pair{0, 1}, std::pair{1, 0}, std::pair{1, 1},
                          std::pair{0, 2}, std::pair{0, 3}, std::pair{1, 2}, std::pair{1, 3}));
}

TEST(PositionBlend, PutsTheCornersOfTheGridOnTheCornersOfTheTable) {
  const PatchGrid grid{1, 6, 10};
  const PositionBlend blend = position_blend(grid, 2, 48 * 48);
  const std::vector<PatchPosition> patches = patch_positions(grid, 2);
  for (size_t i = 0; i < patches.size(); ++i) {
    double sum = 0;
    double row = 0;
    double column = 0;
    for (size_t corner = 0; corner < 4; ++corner) {
      const int32_t index = blend.indices[4 * i + corner];
      const double weight = blend.weights[4 * i + corner];
      ASSERT_GE(index, 0);
      ASSERT_LT(index, 48 * 48);
      sum += weight;
      row += weight * (index / 48);
      column += weight * (index % 48);
    }
    EXPECT_NEAR(sum, 1, 1e-6);
    // Blending the table's own coordinates gives the place that was asked for.
    EXPECT_NEAR(row, patches[i].row * 47.0 / 5, 1e-4);
    EXPECT_NEAR(column, patches[i].column * 47.0 / 9, 1e-4);
  }
}

TEST(PositionBlend, RepeatsItselfInEveryTemporalSlice) {
  const PositionBlend one = position_blend({1, 4, 6}, 2, 2304);
  const PositionBlend two = position_blend({2, 4, 6}, 2, 2304);
  ASSERT_EQ(two.indices.size(), 2 * one.indices.size());
  EXPECT_TRUE(std::equal(one.indices.begin(), one.indices.end(),
                         two.indices.begin() + static_cast<int64_t>(one.indices.size())));
}

}  // namespace
}  // namespace glimpse
