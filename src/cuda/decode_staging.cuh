// The products of the fused decoder as a block sees them, and how each one's activations get from
// what the blocks published into shared memory.
#pragma once

#include "cuda/decode_attention.cuh"

namespace glimpse::cuda::fused {

/// The units of a pass over a chunk of columns.
template <typename W, bool kMany>
__device__ inline PassPlan plan_pass(const ProductShape& shape, int first_tile, int first_column) {
  constexpr int kColumns = RingUnit<kMany>::kBytes / static_cast<int>(sizeof(W));
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
  constexpr int kParts = RingUnit<kMany>::kParts;
  constexpr int kStep = kMany ? 1 : 2;
  shape.rows = TileRows::deal(shape.outputs, paired, RingUnit<kMany>::kHalfRows);
  // Chunks begin where scales can be read in pairs.
  const int fit =
      min((Layout<kMany>::kStagedBytes / (a.rows * 2) - 32) / kBlockColumns, kMaxChunkBlocks);
  const int blocks = (shape.columns + kBlockColumns - 1) / kBlockColumns;
  const int whole = fit >= blocks ? fit : fit / kStep * kStep;
  const int chunks = (blocks + whole - 1) / whole;
  const int steps = (blocks + chunks * kStep - 1) / (chunks * kStep);
  shape.chunk_columns = steps * kStep * kBlockColumns;
  shape.scale_stride = Divisor::of((blocks + kParts - 1) / kParts * kParts);
  shape.scale_columns = blocks;
  shape.scale_blocks = shape.rows.last > shape.rows.first ? (shape.rows.last - 1) / kBlockColumns -
                                                                shape.rows.first / kBlockColumns + 1
                                                          : 0;
  shape.pass = plan_pass<W, kMany>(shape, 0, 0);
  shape.last = plan_pass<W, kMany>(shape, 0, (chunks - 1) * shape.chunk_columns);
  shape.chunks_add_up =
      shape.rows.tiles <= Layout<kMany>::kTiles && shape.pass.units.d == shape.last.units.d;
  return shape;
}

/// Pairs of outputs that a tile has room for, as a power of two.
template <bool kMany>
constexpr int pair_bits_of(bool paired) {
  return (kMany ? 3 : 2) - (paired ? 1 : 0);
}

/// What lane `item % 32` adds up of a pass as its `item / 32`th.
template <bool kMany>
__device__ SumItem sum_item(const TileRows& rows, bool paired, const PassPlan& plan, int first_tile,
                            int item) {
  using Slot = TileSums<Layout<kMany>::kRows>;
  constexpr int kSlotFloats = sizeof(Slot) / sizeof(float);
  static_assert(sizeof(typename Layout<kMany>::Scratch) / sizeof(float) <= 1 << 12);
  const int pair_bits = pair_bits_of<kMany>(paired);
  constexpr int kPairs = RingUnit<kMany>::kHalfRows / 2;  // of half a tile
  const int pair = item & ((1 << pair_bits) - 1);
  const int tile = item >> pair_bits;
  const int in_half = pair % kPairs * 2;
  const int half = pair / kPairs;  // 0 where paired
  const int output = (first_tile + tile) * rows.per_tile + half * rows.half + in_half;
  if (tile >= plan.tiles || in_half >= rows.half || rows.first + output >= rows.last) return {};
  const int first_unit = tile * plan.units.d;
  const int first = plan.per_warp.divide(first_unit) + tile;
  const int last = plan.per_warp.divide(first_unit + plan.units.d - 1) + tile;
  return {static_cast<uint32_t>(first * kSlotFloats + half * 8 + in_half),
          static_cast<uint32_t>(last - first + 1), static_cast<uint32_t>(output)};
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
  using Unit = RingUnit<kMany>;

  LanePieces at;
  int run = 0;          // units left of this tile
  int last_groups = 0;  // of the run's last unit
  int left = 0;         // units of this pass behind the run
  int row = 0;          // the tile's first
  int layer = 0, product = -1;
  int first_tile = 0, first_column = 0;

  __device__ StepCursor() { next_product(); }
  __device__ bool is_done() const { return run == 0; }
  __device__ int groups() const {
    return kMany || run > 1 ? static_cast<int>(Unit::kGroups) : last_groups;
  }
  __device__ void advance() {
    at.lower += Unit::kBytes;
    at.upper += Unit::kBytes;
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
    const DecodeLayer& weights = tail_of_block().layers[layer % kLayersAhead];
    const bool paired = product == static_cast<int>(DecodeProduct::gate_up);
    const int lane = threadIdx.x % 32;
    const int columns = shape().columns;
    const auto row_bytes = static_cast<uint32_t>(columns) * static_cast<uint32_t>(sizeof(W));
    const auto* lower = static_cast<const uint8_t*>(weights.weights[product]);
    const auto* upper = paired ? static_cast<const uint8_t*>(weights.up) : lower;
    const uint32_t offset = first_column * static_cast<int>(sizeof(W)) + unit * Unit::kBytes +
                            (kMany ? 0 : lane / 16 * 64) + lane % 4 * 16;
    const int upper_half = paired ? 0 : of.half;
    const int in_tile = row + min(lane / 4 % Unit::kHalfRows, static_cast<int>(of.half) - 1);
    const int last = of.last_row;
    at.lower = lower + uint64_t{row_bytes} * min(in_tile, last) + offset;
    at.upper = upper + uint64_t{row_bytes} * min(in_tile + upper_half, last) + offset;
    if constexpr (!kMany) {
      const int end = min(shape().chunk_columns, columns - first_column);
      const int before = (unit + run - 1) * Unit::kBytes;
      const int bytes = end * static_cast<int>(sizeof(W)) - before;
      last_groups = min(bytes / Unit::kGroupBytes, static_cast<int>(Unit::kGroups));
    }
  }
};

// ---- activations --------------------------------------------------------------------------------

/// Which row's activations a warp stages, and which part of them: several warps share a row. The
/// warp that adds up the sums of a single row stages nothing: the others are ahead of it.
struct RowShare {
  int row, part, parts;

  __device__ explicit RowShare(int rows) {
    static_assert(kStreamWarps == 8);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (rows == 1) {
      parts = kStreamWarps - 1;
      part = warp - 1;
      row = part < 0 ? rows : 0;
    } else {
      const int bits = rows > 4 ? 0 : rows > 2 ? 1 : 2;
      parts = 1 << bits;
      part = warp & (parts - 1);
      row = warp >> bits;
    }
  }
  /// The first of `count` things that part `index` takes.
  __device__ int begin(int count, int index) const {
    // A division, exact for all counts here.
    const int reciprocal = (parts == 7   ? 0x10000 / 7
                            : parts == 4 ? 0x10000 / 4
                            : parts == 2 ? 0x10000 / 2
                                         : 0x10000) +
                           1;
    return (count * index + parts - 1) * reciprocal >> 16;
  }
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
  __device__ void wait() {
#pragma unroll 1
    for (int tries = 0; !look(); ++tries) {
      if (tries > kPollLimit) __trap();
    }
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
  RowStatistics statistics(published.statistics[warp], warp < a.rows);
  if (share.row >= a.rows) {
    statistics.wait();
    return statistics.squares();
  }
  constexpr int kAtOnce = 3;
  LaneVectors vectors(share, published.words + share.row * a.hidden_size, a.hidden_size / 4);
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

/// A warp's part of a published bf16 row on its way, 256 columns at a time.
template <typename W, bool kMany>
struct StagedPairs {
  static constexpr int kAtOnce = kMany ? 10 : 6;
  using Words = Awaited<kAtOnce>;
  RowShare share;
  LaneVectors vectors;
  int count;  // columns
  Words& words;

  __device__ StagedPairs(const RowShare& of, const uint32_t* row, int columns, Words& of_row)
      : share(of), vectors(of, row, columns / 8), count(columns), words(of_row) {}
  /// For the first ones, before anything else.
  __device__ void ask() {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) words.ask(i, vectors.at(i), vectors.has(i));
  }
  template <typename Others>
  __device__ void wait(const Others& others) {
    words.wait([&](int i) { return vectors.at(i); }, others);
  }
  /// With few rows the scales are found here; with many `common` is what all of the row is scaled
  /// with.
  __device__ void put(const Staged& staged, StagedScale common) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (kMany && lane == 0) staged.scales[share.row] = common.scale;
    const __nv_bfloat162 factor = __float2bfloat162_rn(common.factor);
#pragma unroll 1
    for (;;) {
      wait([] { return true; });
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (!vectors.warp_has(i)) break;
        uint4 eight{~words.at[i].x, ~words.at[i].y, ~words.at[i].z, ~words.at[i].w};
        words.ask(i, vectors.at(i + kAtOnce), vectors.has(i + kAtOnce));
        // Zeros beyond the row's end. A block of 128 columns that the row does not have has no
        // room.
        const int block = 2 * (vectors.next / 32 + i) + lane / 16;
        const bool has_room = block * kBlockColumns < count;
        uint16_t* const to =
            staged.values + share.row * staged.stride + (vectors.next + 32 * i) * 8;
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
};

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
  typename StagedPairs<W, true>::Words words;
  StagedPairs<W, true> pairs(share, published.words + share.row * a.hidden_size / 2, a.hidden_size,
                             words);
  pairs.ask();
  pairs.wait([&] { return statistics.look(); });
  StagedScale common{1, 1};
  if constexpr (sizeof(W) == 1) {
    common = staged_scale_of(statistics.largest());
    common.scale *= norm_factor(a, statistics.squares());
  }
  pairs.put(staged, common);
  return statistics.squares();
}

/// This warp's part of the MLP's inner activations of a chunk of columns; of no row, if it has
/// none.
template <typename W, bool kMany>
__device__ inline StagedPairs<W, kMany> inner_pairs(
    const Block& block, const PublishedRows<kMaxIntermediate / 2>& published, int begin, int count,
    typename StagedPairs<W, kMany>::Words& words) {
  const DecodeArguments& a = block.a;
  const RowShare share(a.rows);
  return {share, published.words + (share.row * a.intermediate_size + begin) / 2, count, words};
}

/// What this warp's row of them is scaled with, where that is known for a whole row.
template <typename W, bool kMany>
__device__ inline StagedScale inner_scale(const Block& block,
                                          const PublishedRows<kMaxIntermediate / 2>& published) {
  const RowShare share(block.a.rows);
  if (!kMany || sizeof(W) != 1 || share.row >= block.a.rows) return {1, 1};
  RowStatistics statistics(published.statistics[share.row]);
  statistics.wait();
  return staged_scale_of(statistics.largest());
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
