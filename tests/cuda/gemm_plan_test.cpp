// The launches of tensor-core products, chosen from numbers alone: no GPU needed.
#include <gtest/gtest.h>

#include "cuda/gemm.h"

namespace glimpse::cuda {
namespace {

constexpr GemmTile kTiles[] = {GemmTile::t16f256, GemmTile::t32f256,  GemmTile::t64f128,
                               GemmTile::t96f128, GemmTile::t128f128, GemmTile::t128f256};
// RTX 5060, RTX 3060, RTX 4060, A100, H200: multiprocessors and shared bytes of each.
constexpr GemmDevice kCards[] = {
    {30, 100 << 10}, {28, 100 << 10}, {24, 100 << 10}, {108, 164 << 10}, {132, 228 << 10}};

struct Shape {
  int64_t rows, out, in;
};
// Prefill and vision of 2B and 4B, the merger, the head, and odd ones.
constexpr Shape kShapes[] = {
    {782, 4096, 2048},  {2048, 12288, 2048}, {2048, 2048, 6144}, {3072, 3456, 1152},
    {3072, 4304, 1152}, {3072, 1152, 4304},  {768, 4608, 4608},  {1, 151936, 2048},
    {9, 2560, 9728},    {17, 20, 40},        {1, 4, 8}};

GemmArguments arguments_of(const Shape& shape, bool is_f8, GemmOp op) {
  return {.num_rows = shape.rows,
          .out_features = shape.out,
          .in_features = shape.in,
          .op = op,
          .weight_is_f8 = is_f8};
}

TEST(GemmPlan, EveryTileFitsTheSharedMemoryOfEveryCard) {
  constexpr int kSharedLimit = 99 * 1024;  // of a block on sm_86, 89 and 120
  for (const GemmTile tile : kTiles) {
    for (const bool is_f8 : {false, true}) {
      EXPECT_LE(gemm_tile_shape(tile, is_f8).shared_bytes(), kSharedLimit)
          << "tile " << static_cast<int>(tile) << (is_f8 ? " e4m3" : " bf16");
    }
  }
}

TEST(GemmPlan, EveryTileOfTheOutputIsTakenByABlock) {
  for (const GemmDevice& card : kCards) {
    for (const Shape& shape : kShapes) {
      for (const bool is_f8 : {false, true}) {
        for (const GemmOp op : {GemmOp::store, GemmOp::silu_mul}) {
          const GemmArguments arguments = arguments_of(shape, is_f8, op);
          for (const GemmTile tile : kTiles) {
            const GemmPlan plan = plan_gemm_tile(arguments, card, tile);
            const GemmTileShape size = gemm_tile_shape(tile, is_f8);
            const int64_t features = op == GemmOp::silu_mul ? 2 * shape.out : shape.out;
            SCOPED_TRACE(::testing::Message() << shape.rows << " x " << shape.out << " x "
                                              << shape.in << " on " << card.num_multiprocessors);
            EXPECT_GE(int64_t{plan.token_tiles} * size.tokens, shape.rows);
            EXPECT_GE(int64_t{plan.feature_tiles} * size.features, features);
            EXPECT_GE(int64_t{plan.k_steps} * size.k_step, shape.in);
            ASSERT_GT(plan.num_blocks, 0);
            const int64_t shared_tiles = int64_t{plan.token_tiles} * plan.feature_tiles -
                                         int64_t{plan.full_waves} * plan.num_blocks;
            if (shared_tiles > 0) {
              EXPECT_GT(plan.shared_blocks, 0);
              EXPECT_LE(plan.shared_blocks, plan.num_blocks);
              EXPECT_LT(shared_tiles * static_cast<int64_t>(sizeof(int)), kGemmCounterBytes);
            }
          }
        }
      }
    }
  }
}

TEST(GemmPlan, WithoutSharingEveryTileIsWhole) {
  for (const GemmDevice& card : kCards) {
    for (const Shape& shape : kShapes) {
      for (const GemmTile tile : kTiles) {
        const GemmPlan plan =
            plan_gemm_tile(arguments_of(shape, false, GemmOp::store), card, tile, false);
        const int64_t tiles = int64_t{plan.token_tiles} * plan.feature_tiles;
        EXPECT_EQ(plan.shared_blocks, 0);
        EXPECT_GE(int64_t{plan.full_waves} * plan.num_blocks, tiles);
        EXPECT_LT(int64_t{plan.full_waves - 1} * plan.num_blocks, tiles);
      }
    }
  }
}

TEST(GemmPlan, APlanStaysWithinTheWorkspace) {
  for (const GemmDevice& card : kCards) {
    const int64_t workspace = gemm_workspace_bytes(card);
    for (const Shape& shape : kShapes) {
      for (const bool is_f8 : {false, true}) {
        const GemmPlan plan = plan_gemm(arguments_of(shape, is_f8, GemmOp::store), card);
        const GemmTileShape size = gemm_tile_shape(plan.tile, is_f8);
        // A block that shares tiles touches two at most where its share is less than a tile.
        const int64_t parts = 2 * int64_t{plan.shared_blocks} * size.tokens * size.features * 4;
        EXPECT_LE(kGemmCounterBytes + parts, workspace) << shape.rows << " rows";
      }
    }
  }
}

TEST(GemmPlan, UnalignedRowsAreLeftToThePlainKernel) {
  GemmArguments arguments = arguments_of({64, 128, 256}, false, GemmOp::store);
  arguments.x_stride = 256;
  arguments.out_stride = 128;
  EXPECT_TRUE(gemm_supports(arguments));
  arguments.x_stride = 257;
  EXPECT_FALSE(gemm_supports(arguments));
  arguments.x_stride = 256;
  arguments.in_features = 252;
  EXPECT_FALSE(gemm_supports(arguments));
  arguments.in_features = 256;
  arguments.out_features = 126;
  EXPECT_FALSE(gemm_supports(arguments));
}

}  // namespace
}  // namespace glimpse::cuda
