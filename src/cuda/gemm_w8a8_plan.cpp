// Which tile, and what can be run: numbers in, numbers out.
#include "cuda/gemm_w8a8.h"

namespace glimpse::cuda {

W8A8TileShape w8a8_tile_shape(W8A8Tile tile) {
  switch (tile) {
    case W8A8Tile::t16f32:
      return {16, 32, 32, 4};
    case W8A8Tile::t64f64:
      return {64, 64, 128, 3};
    case W8A8Tile::t128f128:
      return {128, 128, 256, 3};
  }
  return {};
}

W8A8Tile choose_w8a8_tile(const W8A8Arguments& arguments, int num_multiprocessors) {
  if (arguments.num_rows <= w8a8_tile_shape(W8A8Tile::t16f32).tokens) return W8A8Tile::t16f32;
  const W8A8TileShape shape = w8a8_tile_shape(W8A8Tile::t128f128);
  const int64_t rows_of_w =
      arguments.op == GemmOp::silu_mul ? 2 * arguments.out_features : arguments.out_features;
  const int64_t tiles = ((arguments.num_rows + shape.tokens - 1) / shape.tokens) *
                        ((rows_of_w + shape.features - 1) / shape.features);
  return tiles >= num_multiprocessors ? W8A8Tile::t128f128 : W8A8Tile::t64f64;
}

bool w8a8_supports(const W8A8Arguments& arguments) {
  const auto aligned = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  return arguments.in_features % 16 == 0 && arguments.codes_stride % 16 == 0 &&
         arguments.x_scale_stride % 2 == 0 && arguments.out_features % 4 == 0 &&
         arguments.out_stride % 4 == 0 && aligned(arguments.codes, 16) &&
         aligned(arguments.x_scales, 8) && aligned(arguments.weight, 16) &&
         aligned(arguments.weight_up, 16) && aligned(arguments.out, arguments.out_is_f32 ? 16 : 8);
}

}  // namespace glimpse::cuda
