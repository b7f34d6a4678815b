// The products of the fused decoder as a block sees them, and how each one's activations get from
// what the blocks published into shared memory.
#pragma once

#include "cuda/decode_attention.cuh"

namespace glimpse::cuda::fused {

/// The units of a pass over a chunk of columns.
template <typename W, bool kMany>
__device__ inline PassPlan plan_pass(const ProductShape& shape, int first_tile, int first_column) {
  constexpr int kColumns = kRingUnitBytes<kMany> / static_cast<int>(sizeof(W));
  const int columns = min(shape.chunk_columns, shape.columns - first_column);
  return PassPlan::deal(min(shape.rows.tiles - first_tile, Layout<kMany>::kTiles),
                        (columns + kColumns - 1) / kColumns, kStreamWarps);
}

template <typename W, bool kMany>
__device__ ProductShape product_shape(const DecodeArguments& a, DecodeProduct product) {
  ProductShape shape;
  const int attended = a.num_heads * kDecodeHeadDim;
  const bool paired = product == DecodeProduct::gate_up;
  shape.outputs = product == DecodeProduct::qkv ? attended + 2 * a.num_kv_heads * kDecodeHeadDim
                  : paired                      ? a.intermediate_size
                                                : a.hidden_size;
  shape.columns = product == DecodeProduct::o      ? attended
                  : product == DecodeProduct::down ? a.intermediate_size
                                                   : a.hidden_size;
  shape.rows = TileRows::deal(shape.outputs, paired);
  const int fit =
      min((Layout<kMany>::kStagedBytes / (a.rows * 2) - 32) / kBlockColumns, kMaxChunkBlocks);
  const int blocks = (shape.columns + kBlockColumns - 1) / kBlockColumns;
  const int chunks = (blocks + fit - 1) / fit;
  shape.chunk_columns = (blocks + chunks - 1) / chunks * kBlockColumns;
  shape.pass = plan_pass<W, kMany>(shape, 0, 0);
  shape.last = plan_pass<W, kMany>(shape, 0, (chunks - 1) * shape.chunk_columns);
  return shape;
}

/// A warp's first run of units of a product: what a run's place follows from, in one load.
template <typename W, bool kMany>
__device__ FirstRun first_run(const ProductShape& shape, int warp) {
  const PassPlan& plan = shape.pass_over(0);
  const int first = warp * plan.per_warp.d;
  const int left = max(min(plan.per_warp.d, plan.tiles * plan.units.d - first), 0);
  const int tile = plan.units.divide(first);
  const int unit = first - tile * plan.units.d;
  const int run = min(plan.units.d - unit, left);
  const bool is_whole =
      shape.rows.tiles <= Layout<kMany>::kTiles && shape.chunk_columns >= shape.columns;
  return {static_cast<uint16_t>(shape.rows.first + tile * shape.rows.per_tile),
          static_cast<uint16_t>(shape.rows.last - 1),
          static_cast<uint16_t>(unit),
          static_cast<uint16_t>(run),
          static_cast<uint16_t>(left - run),
          static_cast<uint16_t>(plan.units.d),
          static_cast<uint8_t>(shape.rows.half),
          static_cast<uint8_t>(shape.rows.per_tile),
          is_whole};
}

/// The units that a warp multiplies in a step, in their order: those of each pass over each chunk
/// of columns of each product of each layer.
template <typename W, bool kMany>
struct StepCursor {
  static constexpr int kBytes = kRingUnitBytes<kMany>;
  static constexpr int kParts = kBytes / kUnitBytes;

  const DecodeLayers& layers;
  LanePieces at;
  int run = 0;                // units left of this tile
  bool ends_in_half = false;  // the run's last unit
  int left = 0;               // units of this pass behind the run
  int row = 0;                // the tile's first
  int layer = 0, product = -1;
  int first_tile = 0, first_column = 0;

  __device__ explicit StepCursor(const DecodeLayers& all) : layers(all) { next_product(); }
  __device__ bool is_done() const { return run == 0; }
  __device__ bool is_half() const { return kParts > 1 && ends_in_half && run == 1; }
  __device__ void advance() {
    at.lower += kBytes;
    at.upper += kBytes;
    at.scale += kParts;
    if (--run == 0) next_run();
  }

 private:
  // What is in shared memory anyway costs no registers.
  __device__ const ProductShape& shape() const { return tail_of_block().shapes[product]; }
  __device__ const FirstRun& first() const {
    return tail_of_block().first_runs[threadIdx.x / 32][product];
  }
  __device__ void next_run() {
    const FirstRun& of = first();
    if (left > 0) {
      const int units = shape().pass_over(first_column).units.d;
      row += of.per_tile;
      run = min(units, left);
      left -= run;
      seek(of, 0);
    } else if (of.is_whole || !next_pass()) {
      next_product();
    }
  }

  /// Leaves nothing to run behind the last layer.
  __device__ void next_product() {
    for (;;) {
      if (++product == kDecodeProducts) {
        product = 0;
        if (++layer == tail_of_block().arguments.num_layers) return;
      }
      first_tile = 0;
      first_column = 0;
      const FirstRun of = first();
      run = of.run;
      left = of.left;
      row = of.row;
      if (run > 0) return seek(of, of.unit);
      if (!of.is_whole && next_pass()) return;
    }
  }

  /// The next pass in which this warp has units, if the product has one.
  __device__ bool next_pass() {
    const ProductShape& of = shape();
    for (;;) {
      first_tile += Layout<kMany>::kTiles;
      if (first_tile < of.rows.tiles) {
        if (begin_pass(of, plan_pass<W, kMany>(of, first_tile, first_column))) return true;
        continue;
      }
      first_tile = 0;
      first_column += of.chunk_columns;
      if (first_column >= of.columns) return false;
      if (begin_pass(of, of.pass_over(first_column))) return true;
    }
  }

  __device__ bool begin_pass(const ProductShape& of, const PassPlan& plan) {
    left = plan.count();
    if (left == 0) return false;
    const int first_unit = plan.first();
    const int tile = plan.units.divide(first_unit);
    const int unit = first_unit - tile * plan.units.d;
    run = min(plan.units.d - unit, left);
    left -= run;
    row = of.rows.first + (first_tile + tile) * of.rows.per_tile;
    seek(first(), unit);
    return true;
  }

  /// To `unit` of the tile.
  __device__ void seek(const FirstRun& of, int unit) {
    const DecodeLayer& weights = layers.layers[layer];
    const bool paired = product == static_cast<int>(DecodeProduct::gate_up);
    const int lane = threadIdx.x % 32;
    const int columns = shape().columns;
    // Rows beyond the end repeat the last one: their sums are never stored.
    const int upper_half = paired ? 0 : of.half;
    const auto row_of = [&](int in_half) {
      return row + min(in_half, static_cast<int>(of.half) - 1);
    };
    const int last = of.last_row;
    const auto row_bytes = static_cast<uint32_t>(columns) * static_cast<uint32_t>(sizeof(W));
    const auto* lower = static_cast<const uint8_t*>(weights.weights[product]);
    const auto* upper = paired ? static_cast<const uint8_t*>(weights.up) : lower;
    const uint32_t offset =
        first_column * static_cast<int>(sizeof(W)) + unit * kBytes + lane % 4 * 16;
    const int weight_row = row_of(lane / 4);
    at.lower = lower + uint64_t{row_bytes} * min(weight_row, last) + offset;
    at.upper = upper + uint64_t{row_bytes} * min(weight_row + upper_half, last) + offset;
    if constexpr (kParts > 1) {
      const int end = min(shape().chunk_columns, columns - first_column);
      ends_in_half = (unit + run) * kBytes > end * static_cast<int>(sizeof(W));
    }
    if constexpr (sizeof(W) == 1) {
      const int in_unit = lane / kParts;  // of the unit's 16 rows, whose scale this lane copies
      const bool is_upper = in_unit >= 8;
      const float* scales = paired && is_upper ? weights.up_scales : weights.scales[product];
      const int scale_columns = (columns + kBlockColumns - 1) / kBlockColumns;
      const int scale_row = min(row_of(in_unit % 8) + (is_upper ? upper_half : 0), last);
      at.scale = scales + scale_row / kBlockColumns * scale_columns + first_column / kBlockColumns +
                 unit * kParts + lane % kParts;
    }
  }
};

// ---- activations --------------------------------------------------------------------------------

/// Which row's activations a warp stages, and which part of them: several warps share a row.
struct RowShare {
  int row, part, bits;

  __device__ explicit RowShare(int rows) {
    bits = rows > 4 ? 0 : rows > 2 ? 1 : rows > 1 ? 2 : 3;
    static_assert(kStreamWarps == 8);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row = warp >> bits;
    part = warp & (parts() - 1);
  }
  __device__ int parts() const { return 1 << bits; }
  /// The first of `count` things that part `index` takes.
  __device__ int begin(int count, int index) const { return (count * index + parts() - 1) >> bits; }
};

/// The blocks' statistics of one row, as a warp adds them up.
struct RowStatistics {
  static constexpr int kLoads = kMaxBlocks / 32;
  const PublishedStatistics* from;
  uint2 words[kLoads];

  /// Asks for them, if they are wanted.
  __device__ explicit RowStatistics(const PublishedStatistics* blocks, bool wanted = true)
      : from(blocks + threadIdx.x % 32) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      words[i] = {kNothing, kNothing};
      if (wanted && is_one(i)) words[i] = peek2(from[32 * i]);
    }
  }
  /// Whether they are there; asks again for those that are not.
  __device__ bool look() {
    bool all = true;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) all = all && words[i].x != 0 && words[i].y != 0;
    if (__all_sync(0xFFFFFFFFU, all)) return true;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (words[i].x == 0 || words[i].y == 0) words[i] = peek2(from[32 * i]);
    }
    return false;
  }
  /// By the whole warp: all blocks' largest magnitude.
  __device__ float largest() const {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) bits = max(bits, ~words[i].x);
    return __uint_as_float(__reduce_max_sync(0xFFFFFFFFU, bits));
  }
  /// This lane's part of the sum of squares: the same in every block.
  __device__ float squares() const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) sum += __uint_as_float(~words[i].y);
    return sum;
  }

 private:
  __device__ static bool is_one(int i) {
    return 32 * i + static_cast<int>(threadIdx.x) % 32 < static_cast<int>(gridDim.x);
  }
};

/// 1 / rms of a row, from the sums of a warp's lanes.
__device__ inline float norm_factor(const DecodeArguments& a, float squares) {
  return rsqrtf(__fdividef(warp_sum(squares), static_cast<float>(a.hidden_size)) + a.epsilon);
}

// With few rows the residual stream travels as f32, the warps that share a row find a power of two
// for each of their blocks of columns, and the norm's factor is applied to the products' sums. With
// many that is too much work and too many bytes for each block: the stream travels as bf16, one
// power of two per row comes from the statistics, and the norm's factor stands beside it.

/// The vectors of 16 bytes of a published row that a warp stages, 32 at a time: this lane's.
struct LaneVectors {
  const uint32_t* from;  // the next one
  int next;              // its place in the row
  int left;              // places to the end of the warp's part

  /// `vectors` of a row that begins at `row`, dealt in runs of 32.
  __device__ LaneVectors(const RowShare& share, const uint32_t* row, int vectors) {
    const int runs = (vectors + 31) / 32;
    next = share.begin(runs, share.part) * 32 + static_cast<int>(threadIdx.x) % 32;
    left = min(share.begin(runs, share.part + 1) * 32, vectors) - next;
    from = row + next * 4;
  }
  __device__ bool has(int i) const { return 32 * i < left; }
  /// Whether any lane has it.
  __device__ bool warp_has(int i) const {
    return 32 * i < left + static_cast<int>(threadIdx.x) % 32;
  }
  __device__ const uint32_t* at(int i) const { return from + 128 * i; }
  __device__ void advance(int count) {
    from += 128 * count;
    next += 32 * count;
    left -= 32 * count;
  }
};

/// A row of a residual stream in f32 that was multiplied with its norm's weight. Warp i has the sum
/// of squares of row i in its lanes.
template <typename W>
__device__ float stage_norm(const Block& block, const PublishedRows<kMaxHidden>& published,
                            const Staged& staged) {
  const DecodeArguments& a = block.a;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const RowShare share(a.rows);
  constexpr int kAtOnce = 3;
  LaneVectors vectors(share, published.words + share.row * a.hidden_size, a.hidden_size / 4);
  RowStatistics statistics(published.statistics[warp], warp < a.rows);
#pragma unroll 1
  for (bool is_first = true;; is_first = false) {
    Awaited<kAtOnce> words;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) words.ask(i, vectors.at(i), vectors.has(i));
    words.wait([&](int i) { return vectors.at(i); },
               [&] { return !is_first || statistics.look(); });
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!vectors.warp_has(i)) break;
      const float4 x = decoded(words.at[i]);  // 0 beyond the row
      const float four[4] = {x.x, x.y, x.z, x.w};
      float scale = 0;
      const uint2 pairs = staged_words<W>(four, scale);
      put_staged<W>(staged, share.row, vectors.next / 32 + i, pairs, scale);
    }
    vectors.advance(kAtOnce);
    if (!vectors.warp_has(0)) break;
  }
  return statistics.squares();
}

/// Published bf16 rows, 256 columns of a row at a time; `row` is this warp's. With few rows it
/// finds the scales itself; with many `of_row()` waits for what all of the row is scaled with.
template <typename W, bool kMany, typename OfRow>
__device__ void stage_pairs(const RowShare& share, const uint32_t* row, int count,
                            const Staged& staged, const OfRow& of_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kAtOnce = kMany ? 8 : 5;
  LaneVectors vectors(share, row, count / 8);
  const auto vector_at = [&](int i) { return vectors.at(i); };
  Awaited<kAtOnce> words;
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) words.ask(i, vectors.at(i), vectors.has(i));
  const StagedScale common = of_row([&](const auto& others) { words.wait(vector_at, others); });
  if (kMany && lane == 0) staged.scales[share.row] = common.scale;
  const __nv_bfloat162 factor = __float2bfloat162_rn(common.factor);
#pragma unroll 1
  for (;;) {
    words.wait(vector_at);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!vectors.warp_has(i)) break;
      uint4 eight{~words.at[i].x, ~words.at[i].y, ~words.at[i].z, ~words.at[i].w};
      words.ask(i, vectors.at(i + kAtOnce), vectors.has(i + kAtOnce));
      // Zeros beyond the row's end. A block of 128 columns that the row does not have has no room.
      const int block = 2 * (vectors.next / 32 + i) + lane / 16;
      const bool has_room = block * kBlockColumns < count;
      uint16_t* const to = staged.values + share.row * staged.stride + (vectors.next + 32 * i) * 8;
      if constexpr (kMany) {
        if constexpr (sizeof(W) == 1) {
          eight = {f16_pair_of_bf16(eight.x, factor), f16_pair_of_bf16(eight.y, factor),
                   f16_pair_of_bf16(eight.z, factor), f16_pair_of_bf16(eight.w, factor)};
        }
      } else {
        float scale = 0;
        eight = staged_words_bf16<W>(eight, scale);
        if (sizeof(W) == 1 && has_room && lane % 16 == 0) {
          staged.scales[block * staged.scale_rows + share.row] = scale;
        }
      }
      if (has_room) *reinterpret_cast<uint4*>(to) = eight;
    }
    vectors.advance(kAtOnce);
    if (!vectors.warp_has(0)) break;
  }
}

/// The normed residual stream of many rows, from bf16. Beside bf16 weights the norm's factor is
/// left to the sums: what this returns is the same as stage_norm()'s.
template <typename W>
__device__ float stage_norm_pairs(const Block& block, const PublishedRows<kMaxHidden>& published,
                                  const Staged& staged) {
  const DecodeArguments& a = block.a;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const RowShare share(a.rows);
  const int row_of_statistics = sizeof(W) == 1 ? share.row : warp;
  RowStatistics statistics(published.statistics[row_of_statistics], row_of_statistics < a.rows);
  if (share.row >= a.rows) return 0;
  stage_pairs<W, true>(share, published.words + share.row * a.hidden_size / 2, a.hidden_size,
                       staged, [&](const auto& wait_with) -> StagedScale {
                         wait_with([&] { return statistics.look(); });
                         if constexpr (sizeof(W) != 1) return {1, 1};
                         const StagedScale scale = staged_scale_of(statistics.largest());
                         return {scale.factor, scale.scale * norm_factor(a, statistics.squares())};
                       });
  return statistics.squares();
}

/// The MLP's inner activations from column `begin` on.
template <typename W, bool kMany>
__device__ void stage_inner(const Block& block,
                            const PublishedRows<kMaxIntermediate / 2>& published, int begin,
                            int count, const Staged& staged) {
  const DecodeArguments& a = block.a;
  const RowShare share(a.rows);
  if (share.row >= a.rows) return;
  const uint32_t* const row = published.words + (share.row * a.intermediate_size + begin) / 2;
  if constexpr (kMany && sizeof(W) == 1) {
    RowStatistics statistics(published.statistics[share.row]);
    stage_pairs<W, kMany>(share, row, count, staged, [&](const auto& wait_with) {
      wait_with([&] { return statistics.look(); });
      return staged_scale_of(statistics.largest());
    });
  } else {
    stage_pairs<W, kMany>(share, row, count, staged, [](const auto&) { return StagedScale{1, 1}; });
  }
}

/// Copies heads that publish_attended() has added up into shared memory: 16 bytes a lane, two heads
/// a warp.
template <typename W, bool kMany>
__device__ void stage_attended(const Block& block, const Exchange& exchange, int first_head,
                               int heads, const Staged& staged) {
  const DecodeArguments& a = block.a;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const RowShare share(a.rows);
  if (share.row >= a.rows) return;
  constexpr int kAtOnce = kMany ? 8 : 2;
  const int head_of_row = share.row * a.num_heads + first_head;
  LaneVectors vectors(share, exchange.attended + head_of_row * kHalf, heads * 16);
#pragma unroll 1
  while (vectors.warp_has(0)) {
    Awaited<kAtOnce> words;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) words.ask(i, vectors.at(i), vectors.has(i));
    // Lane i has the scale of this warp's head i.
    const int head = vectors.next / 32 * 2 + lane;
    const int in_part = vectors.left + lane;  // from the warp's first lane on
    const bool has_scale = sizeof(W) == 1 && lane < 2 * kAtOnce && lane * 16 < in_part;
    const uint32_t* const scale_at = exchange.attended_scales + head_of_row + head;
    uint32_t scale = has_scale ? peek(scale_at) : kNothing;
    words.wait([&](int i) { return vectors.at(i); },
               [&] {
                 const bool is_here = scale != 0;
                 if (!is_here) scale = peek(scale_at);
                 return is_here;
               });
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!vectors.has(i)) break;
      uint16_t* const to = staged.values + share.row * staged.stride + (vectors.next + 32 * i) * 8;
      *reinterpret_cast<uint4*>(to) = {~words.at[i].x, ~words.at[i].y, ~words.at[i].z,
                                       ~words.at[i].w};
    }
    if (has_scale) staged.scales[head * staged.scale_rows + share.row] = __uint_as_float(~scale);
    __syncwarp();
    vectors.advance(kAtOnce);
  }
}

}  // namespace glimpse::cuda::fused
