// Which models the fused decoder takes: needs no GPU.
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "cuda/decode_layers.h"

namespace glimpse::cuda {
namespace {

DecodeArguments shape(int hidden, int intermediate, int heads, int kv_heads) {
  DecodeArguments a;
  a.num_layers = 28;
  a.rows = 1;
  a.hidden_size = hidden;
  a.intermediate_size = intermediate;
  a.num_heads = heads;
  a.num_kv_heads = kv_heads;
  return a;
}

TEST(DecodeShape, bothModelsFitUpToEightSequencesOnSmallAndLargeCards) {
  for (DecodeArguments a : {shape(2048, 6144, 16, 8), shape(2560, 9728, 32, 8)}) {
    for (a.rows = 1; a.rows <= kDecodeRows; ++a.rows) {
      for (const bool weight_is_f8 : {false, true}) {
        a.weight_is_f8 = weight_is_f8;
        for (const int multiprocessors : {20, 24, 30, 46, 132, 148}) {
          EXPECT_TRUE(decode_supports(a, multiprocessors))
              << a.hidden_size << " rows " << a.rows << " on " << multiprocessors;
        }
      }
    }
  }
}

TEST(DecodeShape, wideRowsAreDealtToSeveralLaunches) {
  DecodeArguments a = shape(4096, 12288, 32, 8);  // 8B
  a.rows = 8;
  a.weight_is_f8 = true;
  EXPECT_FALSE(decode_supports(a, 132));
  EXPECT_EQ(decode_launches(a, 132), 2);
  EXPECT_EQ(decode_launches(shape(2560, 9728, 32, 8), 132), 1);
  EXPECT_EQ(decode_launches(shape(2048 + 64, 6144, 24, 8), 132), 0);
}

TEST(DecodeShape, halfABlockOfColumnsNeedsTheRoomOfAWholeOne) {
  DecodeArguments a = shape(5184, 6144, 16, 8);  // 40.5 blocks, bf16
  a.rows = 4;
  EXPECT_FALSE(decode_supports(a, 132));
  a.hidden_size = 5120;
  EXPECT_TRUE(decode_supports(a, 132));
}

TEST(DecodeShape, aPartOfAStepHasItsOwnSequences) {
  DecodeArguments a = shape(16, 32, 2, 1);
  a.rows = 5;
  a.max_pages = 3;
  std::vector<float> hidden(5 * 16);
  std::vector<float> angles(5 * 64);
  std::vector<int32_t> numbers(5 * 3);
  a.hidden = hidden.data();
  a.cosines = a.sines = angles.data();
  a.slots = a.context_length = a.page_table = numbers.data();
  int rows = 0;
  for (int i = 0; i < 2; ++i) {
    const DecodeArguments part = decode_part(a, i, 2);
    EXPECT_EQ(part.hidden - a.hidden, rows * 16);
    EXPECT_EQ(part.cosines - a.cosines, rows * 64);
    EXPECT_EQ(part.sines - a.sines, rows * 64);
    EXPECT_EQ(part.slots - a.slots, rows);
    EXPECT_EQ(part.context_length - a.context_length, rows);
    EXPECT_EQ(part.page_table - a.page_table, rows * 3);
    rows += part.rows;
  }
  EXPECT_EQ(rows, 5);
}

TEST(DecodeShape, rowsOfWeightsMustBeWholeUnits) {
  DecodeArguments a = shape(2048 + 64, 6144, 16, 8);
  EXPECT_TRUE(decode_supports(a, 132));
  a.weight_is_f8 = true;
  EXPECT_FALSE(decode_supports(a, 132));
}

TEST(DecodeShape, moreRowsLayersOrHeadsThanTheKernelHasRoomForAreRefused) {
  DecodeArguments a = shape(2048, 6144, 16, 8);
  a.rows = kDecodeRows + 1;
  EXPECT_FALSE(decode_supports(a, 132));
  a = shape(2048, 6144, 16, 8);
  a.num_layers = kDecodeMaxLayers + 1;
  EXPECT_FALSE(decode_supports(a, 132));
  EXPECT_FALSE(decode_supports(shape(2048, 6144, 24, 8), 132));  // groups of three
  EXPECT_FALSE(decode_supports(shape(16384, 6144, 16, 8), 132));
}

TEST(DecodeShape, aBlockMustHoldItsShareOfTheResidualStream) {
  DecodeArguments a = shape(2560, 9728, 32, 8);
  a.rows = 8;
  EXPECT_FALSE(decode_supports(a, 8));
  a.rows = 1;
  EXPECT_TRUE(decode_supports(a, 10));
  EXPECT_FALSE(decode_supports(a, 8));  // more norm weights than threads
}

}  // namespace
}  // namespace glimpse::cuda
