// What a block does with a product's sums, and the scales of its weights.
#pragma once

#include "cuda/decode_product.cuh"

namespace glimpse::cuda::fused {

/// The norm that reads the residual stream behind a product; null behind the last layer.
__device__ inline const float* norm_behind(const Block& block, DecodeProduct product, int index) {
  if (product == DecodeProduct::o) {
    return block.tail->layers[index % kLayersAhead].post_attention_layernorm;
  }
  if (product != DecodeProduct::down || index + 1 == block.a.num_layers) return nullptr;
  return block.tail->layers[(index + 1) % kLayersAhead].input_layernorm;
}

/// Elements `at` and the next of the residual stream, times the weights of the norm that comes
/// next. Returns the sum of their squares.
__device__ inline float publish_residual(const Block& block, PublishedStream& to, int at, float2 x,
                                         float2 weight) {
  publish(to.words + pair_place(at / 2, block.a.weight_is_f8),
          bf16_pair(x.x * weight.x, x.y * weight.y));
  return x.x * x.x + x.y * x.y;
}

/// Where a product's sums of outputs `output` and the next go; `factor` is what is left of the norm
/// before it. Each element of the residual stream has one owner, so its sum has one order. Returns
/// the sum of the squares of what it published of the stream.
__device__ inline float store_sums(const Block& block, int index, DecodeProduct product, int output,
                                   int row, float2 lower, float2 upper, float factor) {
  const DecodeArguments& a = block.a;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  Exchange& exchange = block.workspace->exchanges[index % 2];
  const int at = row * shape.outputs + output;
  if (product == DecodeProduct::qkv) {
    publish(exchange.qkv + at / 2, bf16_pair(lower.x * factor, lower.y * factor));
    return 0;
  }
  if (product == DecodeProduct::gate_up) {
    publish(exchange.inner + pair_place(at / 2, a.weight_is_f8),
            bf16_pair(silu(lower.x * factor) * (upper.x * factor),
                      silu(lower.y * factor) * (upper.y * factor)));
    return 0;
  }
  const int column = output - shape.rows.first;
  auto* residual = reinterpret_cast<float2*>(block.residual +
                                             row * (shape.rows.last - shape.rows.first) + column);
  const float2 before = *residual;
  const float2 sum{before.x + lower.x, before.y + lower.y};
  *residual = sum;
  if (product == DecodeProduct::down && index + 1 == a.num_layers) {
    *reinterpret_cast<float2*>(a.hidden + at) = sum;
    return 0;
  }
  return publish_residual(
      block, product == DecodeProduct::o ? exchange.after_attention : exchange.after_mlp, at, sum,
      *reinterpret_cast<const float2*>(block.norm_weights + column));
}

/// What a warp that has no columns of a product leaves of its tiles.
template <bool kMany>
__device__ inline void clear_sums(const Block& block, DecodeProduct product, int tiles) {
  const SumSlots slots = block.slots<kMany>(product);
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    for (int i = static_cast<int>(threadIdx.x) % 32; i < slots.rows * SumSlots::kTileRows;
         i += 32) {
      slots.at(tile, this_warp())[i] = 0;
    }
  }
}

/// Adds the warps' sums of each tile in their order: the same sum every time. A warp takes a row.
/// The block must have met since they were left.
template <bool kMany>
__device__ void add_up_pass(const Block& block, DecodeProduct product, int index, int first_tile) {
  const int row = this_warp();
  if (row >= block.a.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  const TileRows& rows = shape.rows;
  const bool paired = product == DecodeProduct::gate_up;
  const float factor = Block::is_wide(product) ? block.tail->factors[row] : 1;
  const SumSlots slots = block.slots<kMany>(product);
  // A lane takes two outputs of a tile.
  const int pairs = paired ? kHalfRows / 2 : kHalfRows;
  const int items = min(rows.tiles - first_tile, shape.pass_tiles) * pairs;
  const int tile_floats = SumSlots::tile_floats(slots.rows);
  const int warp_floats = slots.rows * SumSlots::kTileRows;
  float squares = 0;
#pragma unroll 1
  for (int item = lane; item < items; item += 32) {
    const int pair_bits = paired ? 2 : 3;
    const int tile = item >> pair_bits;
    const int pair = item & (pairs - 1);
    const int in_half = pair % (kHalfRows / 2) * 2;
    const int half = pair / (kHalfRows / 2);
    const int output =
        rows.begin + (first_tile + tile) * rows.per_tile + half * rows.half + in_half;
    if (in_half >= rows.half || output < rows.first || output >= rows.last) continue;
    const float* const from = slots.slots + tile * tile_floats;
    const auto sum_at = [&](int weight_row) {
      const float* const of_warp = from + SumSlots::place(row, weight_row);
      float2 parts[kStreamWarps];
#pragma unroll
      for (int i = 0; i < kStreamWarps; ++i) {
        parts[i] = *reinterpret_cast<const float2*>(of_warp + i * warp_floats);
      }
      float2 sum = parts[0];
#pragma unroll
      for (int i = 1; i < kStreamWarps; ++i) {
        sum.x += parts[i].x;
        sum.y += parts[i].y;
      }
      return sum;
    };
    const float2 lower = sum_at(half * kHalfRows + in_half);
    float2 upper{0, 0};
    if (paired) upper = sum_at(kHalfRows + in_half);
    squares += store_sums(block, index, product, output, row, lower, upper, factor);
  }
  __syncwarp();
  const bool is_stream = product == DecodeProduct::o ||
                         (product == DecodeProduct::down && index + 1 < block.a.num_layers);
  if (!is_stream) return;
  squares = warp_sum(squares);
  if (lane > 0) return;
  float& so_far = block.tail->squares[row];
  if (first_tile > 0) squares += so_far;
  so_far = squares;
  if (first_tile + shape.pass_tiles < rows.tiles) return;
  Exchange& exchange = block.workspace->exchanges[index % 2];
  PublishedStream& stream =
      product == DecodeProduct::o ? exchange.after_attention : exchange.after_mlp;
  publish(stream.squares[row] + blockIdx.x, __float_as_uint(squares));
}

/// A product's weight scales in shared memory, of both matrices where there are two: [blocks of 128
/// rows, blocks of 128 columns].
__device__ inline float* scale_table(const Block& block, DecodeProduct product) {
  return block.weight_scales + static_cast<int>(product) % 2 * kMaxWeightScales;
}

/// This warp's walk over the tiles from `first_tile` on, with the columns from `column` on.
template <bool kMany>
__device__ inline TileWalk tile_walk(const Block& block, DecodeProduct product, int first_tile,
                                     int column, bool adds) {
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  const bool paired = product == DecodeProduct::gate_up;
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  TileWalk walk;
  walk.lower_scales = scale_table(block, product) + column / kBlockColumns;
  walk.upper_scales = walk.lower_scales + (paired ? shape.scales : 0);
  walk.scale_columns = shape.scale_columns;
  walk.per_tile = shape.rows.per_tile;
  walk.lower_row = shape.rows.begin % kBlockColumns + first_tile * walk.per_tile + g;
  walk.upper_row = walk.lower_row + (paired ? 0 : shape.rows.half);
  const SumSlots slots = block.slots<kMany>(product);
  const int lower = SumSlots::place(2 * t, g);
  walk.slot = static_cast<uint32_t>(__cvta_generic_to_shared(slots.at(0, this_warp()) + lower));
  walk.slot_bytes = SumSlots::tile_floats(slots.rows) * 4;
  walk.upper_bytes = (SumSlots::place(2 * t, g + kHalfRows) - lower) * 4;
  walk.leaves = 2 * t < slots.rows;
  walk.leaves_second = 2 * t + 1 < slots.rows;
  walk.adds = adds;
  return walk;
}

/// The scales of the weights of the product behind one on their way to shared memory: this
/// thread's. The warps that add up few rows' sums have enough to do.
template <typename W, bool kMany>
struct NextScales {
  static constexpr int kFirstThread = kMany ? 0 : 32 * kFewRows;
  static constexpr int kThreads = kStreamThreads - kFirstThread;
  static constexpr int kLoads = (kMaxWeightScales + kThreads - 1) / kThreads;
  float scales[kLoads];
  int count = 0;  // of the product

  __device__ NextScales() {
#pragma unroll
    for (float& scale : scales) forget(scale);
  }
  /// Of `product` of layer `index`, which may be one behind the last.
  __device__ void load(const Block& block, DecodeProduct product, int index) {
    const int thread = static_cast<int>(threadIdx.x) - kFirstThread;
    if (sizeof(W) != 1 || index >= block.a.num_layers || thread < 0) return;
    const int number = static_cast<int>(product);
    const ProductShape& shape = block.tail->shapes[number];
    const DecodeLayer& layer = block.tail->layers[index % kLayersAhead];
    const float* const lower = layer.scales[number] + shape.scale_begin;
    const float* const upper = layer.up_scales + shape.scale_begin - shape.scales;
    count = product == DecodeProduct::gate_up ? 2 * shape.scales : shape.scales;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = thread + i * kThreads;
      if (at < count) scales[i] = __ldg((at < shape.scales ? lower : upper) + at);
    }
  }
  __device__ void store(const Block& block, DecodeProduct product) const {
    float* const table = scale_table(block, product);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = static_cast<int>(threadIdx.x) - kFirstThread + i * kThreads;
      if (at >= 0 && at < count) table[at] = scales[i];
    }
  }
};

}  // namespace glimpse::cuda::fused
