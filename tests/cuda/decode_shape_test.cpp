// Which models the fused decoder takes: needs no GPU.
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

TEST(DecodeShape, wideRowsFit) {
  DecodeArguments a = shape(4096, 12288, 32, 8);  // 8B
  a.rows = 8;
  a.weight_is_f8 = true;
  EXPECT_TRUE(decode_supports(a, 132));
  EXPECT_TRUE(decode_supports(a, 36));
  a = shape(5184, 6144, 16, 8);  // 40.5 blocks, bf16
  a.rows = 8;
  EXPECT_TRUE(decode_supports(a, 132));
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
  for (a.rows = 1; a.rows <= kDecodeRows; ++a.rows) {
    EXPECT_TRUE(decode_supports(a, 14)) << a.rows;
    EXPECT_FALSE(decode_supports(a, 13)) << a.rows;  // 197 columns
  }
}

TEST(DecodeShape, aBlockMustHoldItsWeightsScales) {
  DecodeArguments a = shape(5120, 25600, 32, 8);
  EXPECT_TRUE(decode_supports(a, 132));
  a.weight_is_f8 = true;
  EXPECT_FALSE(decode_supports(a, 132));
}

}  // namespace
}  // namespace glimpse::cuda
