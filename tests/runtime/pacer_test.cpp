#include "runtime/pacer.h"

#include <gtest/gtest.h>

namespace glimpse {
namespace {

constexpr int64_t kMost = 2048;

TEST(Pacer, BelievesTheFirstMeasurementMoreThanTheGuess) {
  Pacer pacer(1.0, 32);
  EXPECT_EQ(pacer.prefill_rows(0, kMost), 35);
  pacer.observe_step(0, 35, 3.5);
  EXPECT_EQ(pacer.prefill_rows(1, kMost), 350);
  EXPECT_EQ(pacer.prefill_rows(1, 100), 100);
}

TEST(Pacer, TakesNoSmallChunksWhileNobodyIsAnswered) {
  Pacer pacer(0.5, 512);
  EXPECT_EQ(pacer.prefill_rows(0, kMost), 512);
  EXPECT_EQ(pacer.prefill_rows(1, kMost), 70);
  pacer.observe_step(0, 512, 5120);
  EXPECT_EQ(pacer.prefill_rows(1, kMost), 16);
}

// Reading the weights takes 5 ms whatever the rows: a question of 40 tokens must not make the next
// prompt's chunks small.
TEST(Pacer, ShortPromptsDoNotMakeRowsDear) {
  Pacer pacer(1.0, 32);
  pacer.observe_step(0, 782, 26);
  const int64_t rows = pacer.prefill_rows(1, kMost);
  EXPECT_GT(rows, 782);
  for (int i = 0; i < 20; ++i) pacer.observe_step(0, 40, 5);
  EXPECT_EQ(pacer.prefill_rows(1, kMost), rows);
  // A long one that became dear does.
  for (int i = 0; i < 20; ++i) pacer.observe_step(0, 782, 52);
  EXPECT_LT(pacer.prefill_rows(1, kMost), 600);
}

TEST(Pacer, TheTimeOfDecodingBesideAChunkIsNotTheChunks) {
  Pacer pacer(1.0, 32);
  pacer.observe_step(8, 0, 10);
  pacer.observe_step(8, 100, 20);
  EXPECT_EQ(pacer.prefill_rows(8, kMost), 350);
}

TEST(Pacer, AVisionPassBeginsWithOneBlockAndGoesOnWithWhatFits) {
  Pacer pacer(1.0, 32);
  EXPECT_EQ(pacer.vision_blocks(576, 24), 1);
  pacer.observe_vision(576, 1, 7);
  EXPECT_EQ(pacer.vision_blocks(576, 24), 5);
  EXPECT_EQ(pacer.vision_blocks(5760, 24), 1);
  EXPECT_EQ(pacer.vision_blocks(16, 24), 24);
}

}  // namespace
}  // namespace glimpse
