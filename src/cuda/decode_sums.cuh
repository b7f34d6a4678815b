// What a block does with a product's sums, and the scales of its weights.
#pragma once

#include "cuda/decode_staging.cuh"

namespace glimpse::cuda::fused {

/// The norm that reads the residual stream behind a product; null behind the last layer.
__device__ inline const float* norm_behind(const Block& block, DecodeProduct product, int index) {
  if (product == DecodeProduct::o) {
    return block.tail->layers[index % kLayersAhead].post_attention_layernorm;
  }
  if (product != DecodeProduct::down || index + 1 == block.a.num_layers) return nullptr;
  return block.tail->layers[(index + 1) % kLayersAhead].input_layernorm;
}

/// What a warp says of the elements of a row that it published.
struct SumStatistics {
  float largest = 0;
  float squares = 0;

  /// Publishes them, the warp's together.
  template <bool kMany>
  __device__ void publish_to(PublishedStatistics& to) const {
    // Few rows find their scales themselves.
    const uint32_t all = kMany ? __reduce_max_sync(0xFFFFFFFFU, __float_as_uint(largest)) : 0;
    const float sum = warp_sum(squares);
    if (threadIdx.x % 32 == 0) publish(to, __uint_as_float(all), sum);
  }
};

/// Elements `at` and the next of the residual stream, times the weights of the norm that comes
/// next.
template <bool kMany>
__device__ inline void publish_residual(PublishedRows<kMaxHidden>& to, int at, float2 x,
                                        float2 weight, SumStatistics& statistics) {
  const float2 y{x.x * weight.x, x.y * weight.y};
  if constexpr (kMany) {
    publish(to.words + at / 2, bf16_pair(y.x, y.y));
  } else {
    publish(to.words + at, y.x, y.y);
  }
  statistics.largest = fmaxf(statistics.largest, fmaxf(fabsf(y.x), fabsf(y.y)));
  statistics.squares += x.x * x.x + x.y * x.y;
}

/// Where a product's sums of outputs `output` and the next go; `factor` is what is left of the norm
/// before it. Each element of the residual stream has one owner, so its sum has one order.
template <bool kMany>
__device__ inline void store_sums(const Block& block, int index, DecodeProduct product,
                                  bool is_complete, int output, int row, float2 lower, float2 upper,
                                  float factor, SumStatistics& statistics) {
  const DecodeArguments& a = block.a;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  Exchange& exchange = block.workspace->exchanges[index % 2];
  const int at = row * shape.outputs + output;
  if (product == DecodeProduct::qkv) {
    publish(exchange.qkv + at / 2, bf16_pair(lower.x * factor, lower.y * factor));
  } else if (product == DecodeProduct::gate_up) {
    const float2 inner{silu(lower.x * factor) * (upper.x * factor),
                       silu(lower.y * factor) * (upper.y * factor)};
    publish(exchange.inner.words + at / 2, bf16_pair(inner.x, inner.y));
    statistics.largest = fmaxf(statistics.largest, fmaxf(fabsf(inner.x), fabsf(inner.y)));
  } else {
    const int column = output - shape.rows.first;
    auto* residual = reinterpret_cast<float2*>(block.residual +
                                               row * (shape.rows.last - shape.rows.first) + column);
    const float2 before = *residual;
    const float2 sum{before.x + lower.x, before.y + lower.y};
    *residual = sum;
    if (!is_complete) return;
    if (product == DecodeProduct::down && index + 1 == a.num_layers) {
      *reinterpret_cast<float2*>(a.hidden + at) = sum;
      return;
    }
    publish_residual<kMany>(
        product == DecodeProduct::o ? exchange.after_attention : exchange.after_mlp, at, sum,
        *reinterpret_cast<const float2*>(block.norm_weights + column), statistics);
  }
}

template <bool kMany>
__device__ inline auto* sums_of(const Block& block) {
  return static_cast<typename Layout<kMany>::Scratch*>(block.sums)->slots;
}

/// The sum of a tile's slots at `from`, in their order: all are on their way at once.
template <typename Slot>
__device__ inline float2 sum_of_slots(const float* from, int slots) {
  float2 parts[kStreamWarps];
#pragma unroll
  for (int i = 0; i < kStreamWarps; ++i) {
    parts[i] = {0, 0};
    if (i < slots) {
      parts[i] = *reinterpret_cast<const float2*>(from + i * (sizeof(Slot) / sizeof(float)));
    }
  }
  float2 sum = parts[0];
#pragma unroll
  for (int i = 1; i < kStreamWarps; ++i) {
    sum.x += parts[i].x;
    sum.y += parts[i].y;
  }
  return sum;
}

/// Adds the warps' runs of each tile in the order of their columns: the same sum every time. A warp
/// takes a row. The block must have met since the last multiply().
template <bool kMany>
__device__ void add_up_pass(const Block& block, DecodeProduct product, int index,
                            const LastPass& pass, bool is_complete) {
  const int row = static_cast<int>(threadIdx.x) / 32;
  if (row >= block.a.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  const TileRows& rows = shape.rows;
  const bool paired = product == DecodeProduct::gate_up;
  using Slot = TileSums<Layout<kMany>::kRows>;
  const float* const sums = sums_of<kMany>(block)->values[row];
  const SumItem* const first_sums = block.tail->first_sums[static_cast<int>(product)];
  const bool is_first = pass.plan == &shape.pass && pass.first_tile == 0;
  const int items = pass.plan->tiles << pair_bits_of<kMany>(paired);
  SumStatistics statistics;
#pragma unroll 1
  for (int item = lane; item < items; item += 32) {
    const SumItem at = is_first && item < kSumItems
                           ? first_sums[item]
                           : sum_item<kMany>(rows, paired, *pass.plan, pass.first_tile, item);
    if (at.num_slots == 0) continue;
    const float* const from = sums + at.from;
    const int slots = static_cast<int>(at.num_slots);
    const auto sum_at = [&](int offset) {
      const float2 sum = sum_of_slots<Slot>(from + offset, slots);
      if (kMany) return sum;
      const float2 other = sum_of_slots<Slot>(from + offset + 4, slots);  // halves of the lines
      return float2{sum.x + other.x, sum.y + other.y};
    };
    const float2 lower = sum_at(0);
    float2 upper{0, 0};
    if (paired) upper = sum_at(8);
    store_sums<kMany>(block, index, product, is_complete, rows.first + static_cast<int>(at.output),
                      row, lower, upper, pass.factor, statistics);
  }
  __syncwarp();
  // Of few rows nobody needs what the inner activations are scaled with, nor anything of qkv.
  const bool is_published =
      paired ? kMany
             : product == DecodeProduct::o ||
                   (product == DecodeProduct::down && index + 1 < block.a.num_layers);
  if (!is_complete || !is_published) return;
  float2& so_far = block.tail->statistics[row];
  if (pass.first_tile > 0 && threadIdx.x % 32 == 0) {
    statistics.largest = fmaxf(statistics.largest, so_far.x);
    statistics.squares += so_far.y;
  }
  if (pass.first_tile + Layout<kMany>::kTiles < rows.tiles) {
    const uint32_t all = __reduce_max_sync(0xFFFFFFFFU, __float_as_uint(statistics.largest));
    const float squares = warp_sum(statistics.squares);
    if (threadIdx.x % 32 == 0) so_far = {__uint_as_float(all), squares};
    return;
  }
  Exchange& exchange = block.workspace->exchanges[index % 2];
  statistics.publish_to<kMany>(paired ? exchange.inner.statistics[row][blockIdx.x]
                               : product == DecodeProduct::o
                                   ? exchange.after_attention.statistics[row][blockIdx.x]
                                   : exchange.after_mlp.statistics[row][blockIdx.x]);
}

/// The scales of the weights of a product from a column on.
__device__ inline ScaleTable scale_table(const Block& block, DecodeProduct product,
                                         int first_column) {
  const int number = static_cast<int>(product);
  const ProductShape& shape = block.tail->shapes[number];
  return {block.weight_scales + number % 2 * kMaxWeightScales + first_column / kBlockColumns,
          shape.rows.first / kBlockColumns, shape.scale_stride.d,
          product == DecodeProduct::gate_up ? shape.scale_blocks * shape.scale_stride.d : 0};
}

/// The scales of the weights of the product behind one on their way to shared memory: this
/// thread's. The warps that add up sums have enough to do.
template <typename W, bool kMany>
struct NextScales {
  static constexpr int kFirstThread = kMany ? 0 : 32 * kFewRows;
  static constexpr int kThreads = kStreamThreads - kFirstThread;
  static constexpr int kLoads = (kMaxWeightScales + kThreads - 1) / kThreads;
  float scales[kLoads];
  int loads = 0;

  /// Of `product` of layer `index`, which may be one behind the last.
  __device__ void load(const Block& block, DecodeProduct product, int index) {
    const int thread = static_cast<int>(threadIdx.x) - kFirstThread;
    if (sizeof(W) != 1 || index >= block.a.num_layers || thread < 0) return;
    const int number = static_cast<int>(product);
    const ProductShape& shape = block.tail->shapes[number];
    const DecodeLayer& layer = block.tail->layers[index % kLayersAhead];
    const int of_matrix = shape.scale_blocks * shape.scale_stride.d;
    const int count = product == DecodeProduct::gate_up ? 2 * of_matrix : of_matrix;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = thread + i * kThreads;
      if (at >= count) return;
      const bool is_upper = at >= of_matrix;
      const int in_matrix = is_upper ? at - of_matrix : at;
      const int row = shape.scale_stride.divide(in_matrix);
      const int column = in_matrix - row * shape.scale_stride.d;
      const float* from = is_upper ? layer.up_scales : layer.scales[number];
      scales[i] = 0;
      if (column < shape.scale_columns) {
        scales[i] =
            __ldg(from + (shape.rows.first / kBlockColumns + row) * shape.scale_columns + column);
      }
      loads = i + 1;
    }
  }
  __device__ void store(const Block& block, DecodeProduct product) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (i >= loads) return;
      block.weight_scales[static_cast<int>(product) % 2 * kMaxWeightScales +
                          static_cast<int>(threadIdx.x) - kFirstThread + i * kThreads] = scales[i];
    }
  }
};

}  // namespace glimpse::cuda::fused
