// The tiles of FP8 products, chosen from numbers alone: no GPU needed.
#include <gtest/gtest.h>

#include "cuda/gemm_w8a8.h"

namespace glimpse::cuda {
namespace {

W8A8Arguments arguments_of(int64_t rows, int64_t out, int64_t in, GemmOp op = GemmOp::store) {
  return {.codes_stride = in, .num_rows = rows, .out_features = out, .in_features = in, .op = op};
}

TEST(W8A8Plan, EveryTileFitsTheSharedMemoryOfEveryCard) {
  constexpr int kSharedLimit = 99 * 1024;  // of a block on sm_86, 89 and 120
  for (const W8A8Tile tile : {W8A8Tile::t16f32, W8A8Tile::t64f64, W8A8Tile::t128f128}) {
    EXPECT_LE(w8a8_tile_shape(tile).shared_bytes(), kSharedLimit) << static_cast<int>(tile);
  }
}

TEST(W8A8Plan, TilesAreAsLargeAsTheCardIsBusy) {
  constexpr int kRtx5060 = 30;
  constexpr int kH200 = 132;
  // Decoding takes the tile of few rows, whatever the card.
  EXPECT_EQ(choose_w8a8_tile(arguments_of(1, 4096, 2048), kRtx5060), W8A8Tile::t16f32);
  EXPECT_EQ(choose_w8a8_tile(arguments_of(16, 4096, 2048), kH200), W8A8Tile::t16f32);
  EXPECT_EQ(choose_w8a8_tile(arguments_of(17, 2048, 2048), kRtx5060), W8A8Tile::t64f64);
  // 7 x 16 tiles of 128 x 128 are enough for the one, too few for the other.
  EXPECT_EQ(choose_w8a8_tile(arguments_of(782, 2048, 6144), kRtx5060), W8A8Tile::t128f128);
  EXPECT_EQ(choose_w8a8_tile(arguments_of(782, 2048, 6144), kH200), W8A8Tile::t64f64);
  // A pair of weights has twice the rows.
  EXPECT_EQ(choose_w8a8_tile(arguments_of(782, 2048, 2048, GemmOp::silu_mul), kH200),
            W8A8Tile::t128f128);
}

TEST(W8A8Plan, UnevenShapesAreLeftToThePlainKernel) {
  EXPECT_TRUE(w8a8_supports(arguments_of(5, 36, 272)));
  EXPECT_FALSE(w8a8_supports(arguments_of(5, 37, 272)));
  EXPECT_FALSE(w8a8_supports(arguments_of(5, 36, 264)));
  W8A8Arguments odd = arguments_of(5, 36, 272);
  odd.x_scale_stride = 5;
  EXPECT_FALSE(w8a8_supports(odd));
  odd = arguments_of(5, 36, 272);
  odd.codes = reinterpret_cast<const void*>(8);
  EXPECT_FALSE(w8a8_supports(odd));
}

}  // namespace
}  // namespace glimpse::cuda
