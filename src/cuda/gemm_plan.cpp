// Which tile and how many blocks: numbers in, numbers out.
#include <algorithm>
#include <array>
#include <cmath>

#include "cuda/gemm.h"

namespace glimpse::cuda {
namespace {

constexpr std::array kTiles = {GemmTile::t16f256, GemmTile::t32f256,  GemmTile::t64f128,
                               GemmTile::t96f128, GemmTile::t128f128, GemmTile::t128f256};

/// Share of the tensor cores' rate that a full card of these blocks reaches (those of 64 rows and
/// more as measured on an H200, products alone).
constexpr double efficiency_of(GemmTile tile, bool weight_is_f8) {
  switch (tile) {
    case GemmTile::t16f256:
      return 0.20;
    case GemmTile::t32f256:
      return 0.32;
    case GemmTile::t64f128:
      return 0.43;
    case GemmTile::t96f128:
      return weight_is_f8 ? 0.50 : 0.60;
    case GemmTile::t128f128:
      return 0.53;
    case GemmTile::t128f256:
      return 0.55;
  }
  return 0;
}

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int blocks_at_once(const GemmTileShape& shape, const GemmDevice& device) {
  constexpr int kReservedPerBlock = 1024;  // by the driver
  const int fit =
      device.shared_bytes_per_multiprocessor / (shape.shared_bytes() + kReservedPerBlock);
  return device.num_multiprocessors * std::clamp(fit, 1, shape.blocks_per_multiprocessor);
}

/// Of a multiprocessor.
constexpr double kProductsPerClock = 1300;
/// To write and fence parts of a tile, and to read each of them: 14 to 17 us on an H200, most of it
/// the way of code that is executed once.
constexpr double kClocksToShare = 16000;
constexpr double kClocksPerPart = 2000;

/// Relative time of a plan: the longest share of the line, and the parts that are added at its end.
double cost_of(const GemmPlan& plan, bool weight_is_f8, const GemmDevice& device) {
  const GemmTileShape shape = gemm_tile_shape(plan.tile, weight_is_f8);
  const int64_t tiles = int64_t{plan.token_tiles} * plan.feature_tiles;
  const int64_t shared_tiles =
      std::max<int64_t>(0, tiles - int64_t{plan.full_waves} * plan.num_blocks);
  const double shared_steps =
      shared_tiles == 0
          ? 0.0
          : static_cast<double>(divide_up(shared_tiles * plan.k_steps, plan.shared_blocks));
  // Fewer blocks than the tile is made for leave the tensor cores waiting, but not in proportion.
  const auto clocks = [&](double steps, int64_t blocks) {
    const auto beside = static_cast<double>(divide_up(blocks, device.num_multiprocessors));
    const double efficiency = efficiency_of(plan.tile, weight_is_f8) *
                              std::sqrt(beside / shape.blocks_per_multiprocessor);
    return steps * shape.k_step * shape.tokens * shape.features * beside /
           (kProductsPerClock * efficiency);
  };
  double products = clocks(shared_steps, plan.num_blocks);
  for (int wave = 0; wave < plan.full_waves; ++wave) {
    const int64_t blocks =
        std::min<int64_t>(plan.num_blocks, tiles - int64_t{wave} * plan.num_blocks);
    products += clocks(plan.k_steps, blocks);
  }
  double adding = 0;
  if (shared_tiles > 0) {
    const auto parts = static_cast<double>(divide_up(plan.shared_blocks, shared_tiles) + 1);
    adding = kClocksToShare + kClocksPerPart * parts;
  }
  return products + adding;
}

}  // namespace

GemmTileShape gemm_tile_shape(GemmTile tile, bool weight_is_f8) {
  const int k_step = weight_is_f8 ? 64 : 32;
  switch (tile) {
    case GemmTile::t16f256:
      return {16, 256, 128, 5, k_step, 2, 64};
    case GemmTile::t32f256:
      return {32, 256, 128, 4, k_step, 2, 64};
    case GemmTile::t64f128:
      return {64, 128, 128, 4, k_step, 3, 64};
    case GemmTile::t96f128:
      return {96, 128, 128, weight_is_f8 ? 4 : 3, 64, 2, weight_is_f8 ? 64 : 128};
    case GemmTile::t128f128:
      return {128, 128, 128, weight_is_f8 ? 4 : 6, k_step, 2, 64};
    case GemmTile::t128f256:
      return {128, 256, 256, weight_is_f8 ? 3 : 4, k_step, 1, 64};
  }
  return {};
}

bool gemm_supports(const GemmArguments& arguments) {
  const auto aligned = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  const int64_t out_bytes = arguments.out_is_f32 ? 16 : 8;  // of four features
  const bool can_rotate = arguments.op != GemmOp::rotate ||
                          (!arguments.out_is_f32 && !arguments.weight_is_f8 &&
                           arguments.rotated_features % kRotatedHeadDim == 0 &&
                           aligned(arguments.cosines, 16) && aligned(arguments.sines, 16));
  // Rows of both matrices are addressed from the first.
  const auto* gate = static_cast<const char*>(arguments.weight);
  const auto* up = static_cast<const char*>(arguments.weight_up);
  constexpr int64_t kFarthest = int64_t{1} << 30;
  const bool are_near = up == nullptr || (up - gate < kFarthest && gate - up < kFarthest);
  return can_rotate && are_near && arguments.in_features % (arguments.weight_is_f8 ? 16 : 8) == 0 &&
         arguments.out_features % 4 == 0 && arguments.x_stride % 8 == 0 &&
         arguments.out_stride % 4 == 0 && aligned(arguments.x, 16) &&
         aligned(arguments.weight, 16) && aligned(arguments.weight_up, 16) &&
         aligned(arguments.bias, 16) && aligned(arguments.out, static_cast<uintptr_t>(out_bytes));
}

GemmPlan plan_gemm_tile(const GemmArguments& arguments, const GemmDevice& device, GemmTile tile,
                        bool may_share) {
  const GemmTileShape shape = gemm_tile_shape(tile, arguments.weight_is_f8);
  const int64_t rows_of_w =
      arguments.op == GemmOp::silu_mul ? 2 * arguments.out_features : arguments.out_features;
  GemmPlan plan;
  plan.tile = tile;
  plan.token_tiles = static_cast<int>(divide_up(arguments.num_rows, shape.tokens));
  plan.feature_tiles = static_cast<int>(divide_up(rows_of_w, shape.features));
  plan.k_steps = static_cast<int>(divide_up(arguments.in_features, shape.k_step));
  const int64_t tiles = int64_t{plan.token_tiles} * plan.feature_tiles;
  const int64_t slots = blocks_at_once(shape, device);
  const int64_t rest = tiles % slots;
  plan.full_waves = static_cast<int>(tiles / slots);
  constexpr int64_t kFewestSteps = 4;  // of a block: below, adding parts costs more than it saves
  if (may_share && rest * 20 < slots * 17) {
    // The last wave would be less than 85 % full. Where two or more blocks can take a tile, all
    // tiles are cut alike; else the line is cut without regard to tiles.
    const int64_t splits =
        std::min(slots / std::max<int64_t>(rest, 1), plan.k_steps / kFewestSteps);
    if (splits > 1) {
      plan.shared_blocks = static_cast<int>(rest * splits);
    } else if (rest * 2 > slots && plan.k_steps >= 2 * kFewestSteps) {
      plan.shared_blocks = static_cast<int>(slots);
    }
  }
  if (rest > 0 && plan.shared_blocks == 0) ++plan.full_waves;
  plan.num_blocks =
      static_cast<int>(tiles >= slots ? slots : std::max<int64_t>(rest, plan.shared_blocks));
  return plan;
}

GemmPlan plan_gemm(const GemmArguments& arguments, const GemmDevice& device) {
  GemmPlan best;
  double best_cost = 0;
  for (const GemmTile tile : kTiles) {
    for (const bool may_share : {true, false}) {
      const GemmPlan plan = plan_gemm_tile(arguments, device, tile, may_share);
      const double cost = cost_of(plan, arguments.weight_is_f8, device);
      if (best.num_blocks == 0 || cost < best_cost) {
        best = plan;
        best_cost = cost;
      }
    }
  }
  return best;
}

int64_t gemm_workspace_bytes(const GemmDevice& device) {
  int64_t most = 0;
  for (const GemmTile tile : kTiles) {
    for (const bool is_f8 : {false, true}) {
      const GemmTileShape shape = gemm_tile_shape(tile, is_f8);
      const int64_t slots = blocks_at_once(shape, device);
      const int64_t parts = slots * 2;
      most = std::max(most, kGemmCounterBytes + parts * shape.tokens * shape.features * 4);
    }
  }
  return most;
}

}  // namespace glimpse::cuda
