// The products of the fused decoder as a block sees them: who multiplies what, and how each warp
// gets its activations from what the blocks published and leaves its sums.
#pragma once

#include <climits>

#include "cuda/decode_attention.cuh"

namespace glimpse::cuda::fused {

template <bool kMany>
__device__ ProductShape product_shape(const Block& block, DecodeProduct product) {
  const DecodeArguments& a = block.a;
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
  const int bytes =
      kMany || Block::is_wide(product) ? block.wide_bytes : Layout<kMany>::kNarrowBytes;
  shape.pass_tiles = bytes / (4 * SumSlots::tile_floats(kMany ? kStreamRows : a.rows));
  shape.scale_columns = (shape.columns + kBlockColumns - 1) / kBlockColumns;
  const int first_block = shape.rows.begin / kBlockColumns;
  shape.scale_begin = first_block * shape.scale_columns;
  shape.scales = shape.rows.tiles == 0 ? 0
                                       : ((shape.rows.last - 1) / kBlockColumns - first_block + 1) *
                                             shape.scale_columns;
  return shape;
}

template <typename W>
__device__ Slice slice_of(const ProductShape& shape, int most_groups, int warp) {
  const int groups = shape.columns / kGroupColumns<W>;
  const int per_warp = (groups + kStreamWarps - 1) / kStreamWarps;
  const int first = min(warp * per_warp, groups);
  const int count = min(per_warp, groups - first);
  const int unit_groups = unit_groups_of(per_warp, most_groups);
  const int units = (count + unit_groups - 1) / unit_groups;
  return {static_cast<int16_t>(first), static_cast<int16_t>(count), static_cast<int16_t>(units),
          static_cast<int16_t>(unit_groups)};
}

/// The units that a warp multiplies in a step, in their order: of each tile, for each unit of its
/// columns, of each pass of each product of each layer.
struct StepCursor {
  LanePieces at;

  __device__ StepCursor() { begin_product({0, 0, 0, 0, 0, 0}); }
  __device__ int run() const { return end_ - tile_; }
  __device__ void step() {
    ++tile_;
    move(tile_bytes_);
  }
  __device__ void turn() {
    const BlockTail& tail = tail_of_block();
    CursorPlace place = tail.cursors[this_warp()];
    const Slice slice = tail.slices[this_warp()][place.product];
    if (++place.unit < slice.units) {
      at.groups = slice.groups(place.unit);
      move(slice.unit_groups * kGroupBytes - (end_ - place.first_tile) * tile_bytes_);
      tile_ = place.first_tile;
      return keep(place);
    }
    place.unit = 0;
    place.first_tile = end_;
    if (end_ < tail.copies[place.product].tiles) return begin_pass(place, slice);
    place.first_tile = 0;
    ++place.product;
    begin_product(place);
  }

 private:
  __device__ void move(int bytes) {
    at.lower += bytes;
    at.upper += bytes;
  }
  // What is in shared memory costs no registers.
  __device__ void keep(const CursorPlace& place) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) tail_of_block().cursors[this_warp()] = place;
    __syncwarp();
  }

  /// Of this product or the next one in which the warp has units; of no groups behind the last
  /// layer.
  __device__ void begin_product(CursorPlace place) {
    const BlockTail& tail = tail_of_block();
    for (;; ++place.product) {
      if (place.product == kDecodeProducts) {
        place.product = 0;
        ++place.layer;
        if (++place.layer_slot == kLayersAhead) place.layer_slot = 0;
      }
      if (place.layer == tail.arguments.num_layers) {
        at.groups = 0;
        tile_ = 0;
        end_ = INT_MAX;
        return;
      }
      const Slice slice = tail.slices[this_warp()][place.product];
      if (slice.units > 0 && tail.copies[place.product].tiles > 0) return begin_pass(place, slice);
    }
  }

  __device__ void begin_pass(const CursorPlace& place, const Slice& slice) {
    const BlockTail& tail = tail_of_block();
    const CopyShape shape = tail.copies[place.product];
    const DecodeLayer& weights = tail.layers[place.layer_slot];
    tile_ = place.first_tile;
    end_ = min(tile_ + shape.pass_tiles, shape.tiles);
    tile_bytes_ = shape.tile_bytes;
    at.groups = slice.groups(0);
    const uint32_t bytes = tail.lane_bytes[place.product][threadIdx.x % 32] +
                           static_cast<uint32_t>(tile_ * shape.tile_bytes) +
                           static_cast<uint32_t>(slice.first * kGroupBytes);
    at.lower = static_cast<const uint8_t*>(weights.weights[place.product]) + bytes;
    at.upper = shape.upper_bytes > 0 ? at.lower + shape.upper_bytes
                                     : static_cast<const uint8_t*>(weights.up) + bytes;
    keep(place);
  }

  int tile_, end_;  // of the pass
  int tile_bytes_;  // from tile to tile
};

/// What StepCursor needs of a product, by one warp.
template <typename W>
__device__ inline void prepare_copies(BlockTail& tail, int product) {
  const ProductShape& shape = tail.shapes[product];
  const TileRows& rows = shape.rows;
  const int row_bytes = shape.columns * static_cast<int>(sizeof(W));
  const bool paired = product == static_cast<int>(DecodeProduct::gate_up);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Lanes whose rows a tile does not have repeat one.
  const int row = rows.begin + min(lane / 4, rows.half - 1);
  tail.lane_bytes[product][lane] = static_cast<uint32_t>(row * row_bytes + lane % 4 * 16);
  if (lane == 0) {
    tail.copies[product] = {rows.tiles, shape.pass_tiles, row_bytes * rows.per_tile,
                            paired ? 0 : row_bytes * rows.half};
  }
}

// ---- activations --------------------------------------------------------------------------------

/// The activations of a unit's groups as the B operand of the mma, straight from published bf16
/// pairs into registers; column n of the operand is sequence n, of few n % 2. Beside FP8 weights
/// they are f16, scaled by a power of two for each sequence.
template <typename W, bool kMany>
class Activations {
 public:
  static constexpr int kVectors = sizeof(W) == 1 ? 2 : 1;  // of a piece: 16 bytes of bf16 each

  /// `published`: [rows, columns] as pairs.
  __device__ Activations(const uint32_t* published, int columns, int rows, const Slice& slice)
      : rows_(rows), row_words_(columns / 2) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    first_ = published + slice.first * (kGroupColumns<W> / 2);
    // Of many sequences a lane asks for its own operands, of few the warp for each row's once.
    first_ += kMany ? lane / 4 * row_words_ + lane % 4 * 4 : lane * 4;
    next_ = first_;
#pragma unroll
    for (uint4& piece : x_) forget(piece);
  }

  /// Back to the first unit.
  __device__ void restart() {
    next_ = first_;
  }
  /// Asks for those of the next unit, `groups` of them.
  __device__ void ask(int groups) {
    if (groups == kUnitGroups) return ask_all<kUnitGroups>(groups);
    ask_all<kUnitGroups - 1>(groups);
  }
  /// Waits for them; `groups` as asked for.
  __device__ void wait(int groups) {
    if (groups == kUnitGroups) return wait_for<kUnitGroups>(groups);
    wait_for<kUnitGroups - 1>(groups);
  }
  /// Of group `i` of the unit.
  __device__ const uint4& piece(int i, int vector) const {
    return x_[i * kVectors + vector];
  }
  /// What sums of columns 2t and 2t + 1 are multiplied with.
  __device__ float scale(int i) const {
    return scales_[i];
  }

 private:
  static constexpr int kPieces = kUnitGroups * kVectors;
  /// Vectors of 16 bytes that a lane asks for of a row, where a unit has `most` groups.
  static constexpr int row_words(int most) {
    return (most * kGroupColumns<W> / 8 + 31) / 32;
  }
  static constexpr int words(int most) {
    return kMany ? most * kVectors : kFewRows * row_words(most);
  }
  static constexpr int kWords = words(kUnitGroups);

  template <int kMost>
  __device__ void ask_all(int groups) {
#pragma unroll
    for (int i = 0; i < words(kMost); ++i) {
      words_.ask(i, place<kMost>(i), is_needed<kMost>(i, groups));
    }
  }
  template <int kMost>
  __device__ void wait_for(int groups) {
    constexpr int kCount = words(kMost);
    words_.template wait_first<kCount>([&](int i) { return place<kMost>(i); });
    next_ += groups * (kGroupColumns<W> / 2);
    uint4 words[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      words[i] = {~words_.at[i].x, ~words_.at[i].y, ~words_.at[i].z, ~words_.at[i].w};
    }
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int t = lane % 4;
    if constexpr (kMany) {
      if constexpr (sizeof(W) == 1) {
        uint32_t largest = largest_of(words);
        largest = max(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, 1));
        largest = max(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, 2));
        const StagedScale scale = staged_scale_of(__uint_as_float(largest));
        to_f16(words, scale.factor);
        scales_[0] = __shfl_sync(0xFFFFFFFFU, scale.scale, 8 * t);
        scales_[1] = __shfl_sync(0xFFFFFFFFU, scale.scale, 8 * t + 4);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) x_[i] = words[i];
    } else {
      constexpr int kRowWords = row_words(kMost);
#pragma unroll
      for (int row = 0; row < kFewRows; ++row) {
        if (row >= rows_) break;
        uint4 of_row[kRowWords];
#pragma unroll
        for (int i = 0; i < kRowWords; ++i) of_row[i] = words[row * kRowWords + i];
        if constexpr (sizeof(W) == 1) {
          const uint32_t largest = __reduce_max_sync(0xFFFFFFFFU, largest_of(of_row));
          const StagedScale scale = staged_scale_of(__uint_as_float(largest));
          to_f16(of_row, scale.factor);
          scales_[row] = scale.scale;
        }
#pragma unroll
        for (int i = 0; i < kMost * kVectors; ++i) {
          const uint4& held = of_row[i * 4 / 32];  // see pair_place()
          const int source = i * 4 % 32 + t;
          const uint4 piece{
              __shfl_sync(0xFFFFFFFFU, held.x, source), __shfl_sync(0xFFFFFFFFU, held.y, source),
              __shfl_sync(0xFFFFFFFFU, held.z, source), __shfl_sync(0xFFFFFFFFU, held.w, source)};
          if (row == 0 || lane / 4 % 2 == row) x_[i] = piece;
        }
      }
    }
  }

  template <int kMost>
  __device__ const uint32_t* place(int i) const {
    if (kMany) return next_ + i * 16;
    return next_ + i / row_words(kMost) * row_words_ + i % row_words(kMost) * 128;
  }
  template <int kMost>
  __device__ bool is_needed(int i, int groups) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (kMany) return lane / 4 < rows_ && i / kVectors < groups;
    return i / row_words(kMost) < rows_ &&
           lane + i % row_words(kMost) * 32 < groups * (kGroupColumns<W> / 8);
  }
  /// The largest magnitude, as the bits of a float.
  template <int kCount>
  __device__ static uint32_t largest_of(const uint4 (&words)[kCount]) {
    uint32_t largest = 0;
#pragma unroll
    for (const uint4& at : words) largest = __vmaxu2(largest, largest_pair(at));
    return larger_of_pair(largest);
  }
  template <int kCount>
  __device__ static void to_f16(uint4 (&words)[kCount], float by) {
    const __nv_bfloat162 factor = __float2bfloat162_rn(by);
#pragma unroll
    for (uint4& at : words) at = f16_of_bf16(at, factor);
  }

  const uint32_t* first_;  // this lane's place in the slice's first group
  const uint32_t* next_;   // in the first group of the next unit
  int rows_;
  int row_words_;
  Awaited<kWords> words_;
  uint4 x_[kPieces];
  float scales_[2] = {1, 1};
};

/// What a warp's tiles of a unit have in common, and where it is among them.
struct TileWalk {
  // A lane's scales in shared memory, of two weight rows: from the block of 128 columns on in which
  // the unit begins.
  const float* lower_scales;
  const float* upper_scales;
  unsigned int lower_row, upper_row;  // from the scales' first row on
  unsigned int scale_columns;
  unsigned int per_tile;
  // Its sums: shared memory addresses, and bytes from tile to tile.
  uint32_t slot;
  uint32_t slot_bytes;
  int32_t upper_bytes;  // from the lower weight row's sum to the upper's
  bool leaves;          // this lane has sums, of the lower activation row
  bool leaves_second;   // and of the upper one
  bool adds;            // to those of the units before
};

__device__ inline float load_sum(uint32_t from) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from));
  return x;
}
__device__ inline void store_sum(uint32_t to, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}

/// The next `count` tiles of a unit of kGroups groups. kOffset is 1 if the unit begins in the
/// middle of a block of 128 columns.
template <typename W, bool kMany, int kGroups, int kOffset, typename Ring>
__device__ __forceinline__ void multiply_tiles(Ring& ring, const Activations<W, kMany>& x,
                                               int count, TileWalk& walk) {
#pragma unroll 1
  for (; count > 0; --count) {
    const RingUnit<kGroups> unit = ring.template take<kGroups>();
    float before[4] = {0, 0, 0, 0};
    if (walk.adds && walk.leaves) {
      before[0] = load_sum(walk.slot);
      before[2] = load_sum(walk.slot + walk.upper_bytes);
      if (walk.leaves_second) {
        before[1] = load_sum(walk.slot + kRowBytes);
        before[3] = load_sum(walk.slot + walk.upper_bytes + kRowBytes);
      }
    }
    // [0], [1] = the lower weight row, columns 2t and 2t + 1 of the activations; [2], [3] = the
    // upper weight row.
    float sums[4] = {0, 0, 0, 0};
    if constexpr (sizeof(W) == 1) {
      const float* const lower =
          walk.lower_scales + walk.lower_row / kBlockColumns * walk.scale_columns;
      const float* const upper =
          walk.upper_scales + walk.upper_row / kBlockColumns * walk.scale_columns;
      constexpr int kBlocks = (kGroups + kOffset + 1) / 2;
      float scales[kBlocks][2];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        scales[i][0] = lower[i];
        scales[i][1] = upper[i];
      }
      float c[kGroups][4] = {};
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        multiply_f8(unit.lower[i], unit.upper[i], x.piece(i, 0), x.piece(i, 1), c[i]);
      }
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const float(&scale)[2] = scales[(i + kOffset) / 2];
        sums[0] += c[i][0] * scale[0];
        sums[1] += c[i][1] * scale[0];
        sums[2] += c[i][2] * scale[1];
        sums[3] += c[i][3] * scale[1];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = sums[i] * x.scale(i % 2) + before[i];
    } else {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        multiply_bf16(unit.lower[i], unit.upper[i], x.piece(i, 0), sums);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += before[i];
    }
    if (walk.leaves) {
      store_sum(walk.slot, sums[0]);
      store_sum(walk.slot + walk.upper_bytes, sums[2]);
    }
    if (walk.leaves_second) {
      store_sum(walk.slot + kRowBytes, sums[1]);
      store_sum(walk.slot + walk.upper_bytes + kRowBytes, sums[3]);
    }
    walk.lower_row += walk.per_tile;
    walk.upper_row += walk.per_tile;
    walk.slot += walk.slot_bytes;
  }
}

/// `tiles` tiles of a unit.
template <typename W, bool kMany, typename Ring>
__device__ inline void multiply_columns(Ring& ring, const Activations<W, kMany>& x, int groups,
                                        int offset, int tiles, TileWalk& walk) {
  static_assert(kUnitGroups == 5);
#pragma unroll 1
  while (tiles > 0) {
    const int count = min(tiles, ring.cursor.run());
    // Most units first: a branch costs as much as a group.
    if (groups == 4 && offset == 0) {
      multiply_tiles<W, kMany, 4, 0>(ring, x, count, walk);
    } else if (groups == 5) {
      if (offset == 0) {
        multiply_tiles<W, kMany, 5, 0>(ring, x, count, walk);
      } else {
        multiply_tiles<W, kMany, 5, 1>(ring, x, count, walk);
      }
    } else {
      switch (groups * 2 + offset) {
        case 2:
          multiply_tiles<W, kMany, 1, 0>(ring, x, count, walk);
          break;
        case 3:
          multiply_tiles<W, kMany, 1, 1>(ring, x, count, walk);
          break;
        case 4:
          multiply_tiles<W, kMany, 2, 0>(ring, x, count, walk);
          break;
        case 5:
          multiply_tiles<W, kMany, 2, 1>(ring, x, count, walk);
          break;
        case 6:
          multiply_tiles<W, kMany, 3, 0>(ring, x, count, walk);
          break;
        case 7:
          multiply_tiles<W, kMany, 3, 1>(ring, x, count, walk);
          break;
        default:
          multiply_tiles<W, kMany, 4, 1>(ring, x, count, walk);
          break;
      }
    }
    tiles -= count;
    if (ring.cursor.run() == 0) ring.cursor.turn();
  }
}

/// The blocks' sums of squares of one row of a residual stream, as a warp waits for them.
struct RowSquares {
  static constexpr int kLoads = kMaxBlocks / 128;
  const uint32_t* from;
  Awaited<kLoads> words;

  __device__ void ask(const uint32_t* of_row) {
    from = of_row + threadIdx.x % 32 * 4;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      words.ask(i, from + 128 * i, 128 * i + threadIdx.x % 32 * 4 < gridDim.x);
    }
  }
  /// 1 / rms of the row, by the whole warp; the same in every block.
  __device__ float norm_factor(const DecodeArguments& a) {
    words.wait([&](int i) { return from + 128 * i; });
    float sum = 0;
#pragma unroll
    for (const uint4& at : words.at) {
      const float4 four = decoded(at);
      sum += four.x + four.y + (four.z + four.w);
    }
    return rsqrtf(__fdividef(warp_sum(sum), static_cast<float>(a.hidden_size)) + a.epsilon);
  }
};

}  // namespace glimpse::cuda::fused
