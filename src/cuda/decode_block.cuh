// What a block of the fused decoder (decode_layers.cu) knows and keeps in shared memory, and how
// the blocks tell each other their results: one grid barrier per layer, and published words.
#pragma once

#include "cuda/decode_layers.h"
#include "cuda/weight_ring.cuh"

namespace glimpse::cuda::fused {

// One block per multiprocessor. Every warp runs the code around the products: fewer warps run less
// of it, and each has all the registers that a thread can have.
constexpr int kStreamThreads = 256;
constexpr int kStreamWarps = kStreamThreads / 32;
constexpr int kFewRows = 2;
/// Layers whose pointers a block has at hand. A warp that has weights in a layer at all is with its
/// copies at most three layers ahead, and this many less two are there from its first product on.
constexpr int kLayersAhead = 5;

constexpr int kPageTokens = 32;
constexpr int kHalf = kDecodeHeadDim / 2;
constexpr int kMaxGroup = 4;  // query heads per kv head
constexpr int kMaxHidden = 6144;
constexpr int kMaxIntermediate = 28672;
constexpr int kMaxQkvHeads = 96;  // of queries, keys and values together
constexpr int kMaxBlocks = 256;
// 99 KiB per block on every card.
constexpr int kSharedBytes = 99 * 1024;
constexpr int kMaxWeightScales = 384;  // of a block's part of a product
constexpr int kTailBytes = 2304;
constexpr int kNormFloats = 192;  // the most hidden columns of a block

/// Floats of a block's share of the residual stream of all rows.
__host__ __device__ inline int residual_floats(int rows, int hidden_size, int blocks) {
  return rows * 2 * ((hidden_size / 2 + blocks - 1) / blocks);
}

/// A block's shared memory: the ring (two units of each warp); sums of qkv and of gate and up,
/// where the attention's partial results have their place; the share of the residual stream; sums
/// of o and down; the weights' scales of this product and the next one; the norm's weights of the
/// block's hidden columns; the tail. The first sums have what the others leave. With many rows all
/// sums share their place.
template <bool kMany>
struct Layout {
  static constexpr int kNarrowBytes = kMany ? 0 : 2560;
  static constexpr int kNarrow = kSharedBytes - kTailBytes - kNarrowBytes -
                                 (kNormFloats + 2 * kMaxWeightScales) * int{sizeof(float)};

  __host__ __device__ static constexpr int ring_bytes(int unit_groups) {
    return kStreamWarps * 2 * unit_groups * int{sizeof(RingGroup)};
  }
  __host__ __device__ static constexpr int residual(int floats) {
    return (kNarrow - floats * int{sizeof(float)}) / 16 * 16;
  }
  __host__ __device__ static constexpr int wide_bytes(int unit_groups, int floats) {
    return residual(floats) - ring_bytes(unit_groups);
  }
};

/// Bytes from one activation row's sums of a tile to the next one's.
constexpr int kRowBytes = 2 * kHalfRows * 4;

/// Where the sums of a product's tiles wait: [tile][warp][activation row][weight row], f32, padded
/// against bank conflicts.
struct SumSlots {
  float* slots;
  int rows;

  static constexpr int kTileRows = 2 * kHalfRows;

  __device__ static int tile_floats(int rows) { return kStreamWarps * rows * kTileRows + 8; }
  __device__ float* at(int tile, int warp) const {
    return slots + tile * tile_floats(rows) + warp * rows * kTileRows;
  }
  /// Of an activation row and weight row of a slot: neighbours of the rows' pairs change places, so
  /// that a warp's lanes meet different banks.
  __device__ static int place(int row, int weight_row) {
    return row * kTileRows + (weight_row ^ (row & 2) * 4);
  }
};
// Keys of one tile of the attention, by one warp; and of a whole block.
constexpr int kTileTokens = 16;
constexpr int kTokensPerRound = kTileTokens * kStreamWarps;
// Keys that are worth a block of their own: fewer pieces are quicker to add up.
constexpr int kTokensPerSplit = 128;
// About two seconds: a block that waits longer means that the grid is not whole.
constexpr long long kBarrierLimit = 4'000'000'000LL;
constexpr int kPollLimit = 1 << 22;

using Bf16 = __nv_bfloat16;

/// Attention of one query head over one split: sums of values, the largest score and the sum of
/// weights relative to it.
struct Partial {
  float sums[kDecodeHeadDim];
  float maximum;
  float weight_sum;
  float padding[2];  // keeps `sums` 16-byte aligned
};

/// The residual stream times the weight of the norm that reads it.
struct PublishedStream {
  uint32_t words[kDecodeRows * kMaxHidden / 2];  // [rows, hidden / 2]
  // Of the stream itself: each block's sum of its elements' squares, as the bits of a float.
  uint32_t squares[kDecodeRows][kMaxBlocks];
};

/// What the blocks tell each other within a layer, as published words: bf16 pairs, but for squares
/// and partial results.
struct Exchange {
  uint32_t qkv[kDecodeRows * kMaxQkvHeads * kDecodeHeadDim / 2];
  PublishedStream after_attention;
  PublishedStream after_mlp;
  uint32_t inner[kDecodeRows * kMaxIntermediate / 2];
  uint32_t attended[kDecodeRows * kDecodeMaxHeads * kHalf];  // [rows, heads]
  // [rows, heads, splits]; splits are given out only as far as there are blocks.
  uint32_t partials[kMaxBlocks * kMaxGroup][sizeof(Partial) / 4];
};
static_assert(kMaxBlocks * kMaxGroup >= kDecodeRows * kDecodeMaxHeads);
/// Device memory behind DecodeArguments::workspace.
struct Workspace {
  unsigned int barrier;
  unsigned int finished;
  unsigned int padding[2];
  Exchange exchanges[2];  // of even and of odd layers
};

/// A block's outputs of one matrix, dealt evenly to tiles. A tile is some rows for the lower half
/// of the mma's A operand and as many for the upper: the rows that follow or, of gate and up
/// (`paired`), the same rows of the other matrix.
struct TileRows {
  int first, last;  // this block's outputs; the first is even
  int begin;        // of the first tile: before `first` where the last tile would leave the matrix
  int half;         // rows in half a tile: even, at most kHalfRows
  int per_tile;     // outputs: half or, unpaired, twice as many
  int tiles;

  __device__ static TileRows deal(int outputs, bool paired) {
    TileRows rows;
    const int pairs = outputs / 2;
    rows.first = 2 * share_begin(pairs, blockIdx.x, gridDim.x);
    rows.last = 2 * share_begin(pairs, blockIdx.x + 1, gridDim.x);
    const int count = rows.last - rows.first;
    const int halves = paired ? 1 : 2;
    rows.tiles = (count + kHalfRows * halves - 1) / (kHalfRows * halves);
    const int slices = max(rows.tiles, 1) * halves * 2;
    rows.half = max(2 * ((count + slices - 1) / slices), 2);
    rows.per_tile = rows.half * halves;
    rows.begin = min(rows.first, outputs - rows.tiles * rows.per_tile);
    return rows;
  }
};

/// What stays the same of a product from layer to layer; worked out once per launch.
struct ProductShape {
  int outputs, columns;
  TileRows rows;
  int pass_tiles;     // that one pass takes
  int scale_begin;    // of the block's scales in a matrix's
  int scale_columns;  // blocks of 128 columns
  int scales;         // of the block, of one matrix
};

/// A warp's columns of a product, as groups (see RingGroup), in units of which it holds the
/// activations at once.
struct Slice {
  int16_t first, count;
  int16_t units, unit_groups;

  __device__ int groups(int unit) const {
    return min(count - unit * unit_groups, static_cast<int>(unit_groups));
  }
};

/// One kv head of one sequence over a run of its keys: a block's work.
struct AttentionUnit {
  int row, kv_head, split;
  int context;
  int first_token, last_token;  // empty for splits that a short context does not need
};

/// Where a warp's copies are in a step, as far as they seldom need it; see StepCursor.
struct alignas(16) CursorPlace {
  int16_t layer, layer_slot;  // in BlockTail::layers
  int16_t product;
  int16_t unit;        // of the warp's columns
  int32_t first_tile;  // of the pass
  int32_t padding;
};

/// What the copies of a product need.
struct alignas(16) CopyShape {
  int tiles;
  int pass_tiles;
  int tile_bytes;   // from a tile's rows to the next one's
  int upper_bytes;  // from its lower half to the upper one; 0 if that is another matrix
};

/// The end of a block's shared memory.
struct BlockTail {
  float squares[kDecodeRows];  // of a product's passes so far
  float factors[kDecodeRows];  // of the norm before qkv or gate and up
  DecodeArguments arguments;
  DecodeLayer layers[kLayersAhead];  // this one's pointers and the next ones'
  ProductShape shapes[kDecodeProducts];
  Slice slices[kStreamWarps][kDecodeProducts];
  CopyShape copies[kDecodeProducts];
  uint32_t lane_bytes[kDecodeProducts][32];  // from a matrix's begin to a lane's piece of tile 0
  CursorPlace cursors[kStreamWarps];
  AttentionUnit unit;  // this block's first
  int max_splits;
  int context[kDecodeRows];
};
static_assert(sizeof(BlockTail) <= kTailBytes);

/// A block's shared memory and what it shares with the others.
struct Block {
  const DecodeArguments& a;
  Workspace* workspace;
  float* wide_sums;  // wide_bytes
  int wide_bytes;
  float* narrow_sums;    // Layout::kNarrowBytes
  float* weight_scales;  // [2, kMaxWeightScales] of products with even and odd numbers
  float* norm_weights;   // [this block's hidden columns] of the norm that comes next
  float* residual;       // [rows, this block's hidden columns]
  BlockTail* tail;

  /// Of few rows products that follow each other leave their sums in different places.
  template <bool kMany>
  __device__ SumSlots slots(DecodeProduct product) const {
    return {kMany || is_wide(product) ? wide_sums : narrow_sums, kMany ? kStreamRows : a.rows};
  }
  __device__ static bool is_wide(DecodeProduct product) {
    return product == DecodeProduct::qkv || product == DecodeProduct::gate_up;
  }
};

__device__ inline uint8_t* shared_memory() {
  extern __shared__ __align__(16) uint8_t shared[];
  return shared;
}

__device__ inline BlockTail& tail_of_block() {
  return *reinterpret_cast<BlockTail*>(shared_memory() + kSharedBytes - kTailBytes);
}

template <bool kMany>
__device__ inline Block this_block() {
  using L = Layout<kMany>;
  BlockTail& tail = tail_of_block();
  const DecodeArguments& a = tail.arguments;
  const int floats = residual_floats(a.rows, a.hidden_size, static_cast<int>(gridDim.x));
  auto* const narrow = reinterpret_cast<float*>(shared_memory() + L::kNarrow);
  float* const weight_scales = narrow + L::kNarrowBytes / 4;
  return {a,
          static_cast<Workspace*>(a.workspace),
          reinterpret_cast<float*>(shared_memory() + L::ring_bytes(a.unit_groups)),
          L::wide_bytes(a.unit_groups, floats),
          narrow,
          weight_scales,
          weight_scales + 2 * kMaxWeightScales,
          reinterpret_cast<float*>(shared_memory() + L::residual(floats)),
          &tail};
}

__device__ inline int this_warp() {
  return static_cast<int>(threadIdx.x) / 32;
}

__device__ inline float silu(float x) {
  return __fdividef(x, 1.0F + __expf(-x));
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFU, x, offset);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, offset));
  }
  return x;
}

// ---- what blocks tell each other ----------------------------------------------------------------

/// By one thread, behind a meeting of the block: what all its threads wrote before is seen by whom
/// wait() lets go on.
__device__ inline void arrive(const Block& block) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(&block.workspace->barrier)
               : "memory");
}

/// By one thread: until all blocks have arrived `times` times.
__device__ inline void wait(const Block& block, int times) {
  const unsigned int target = static_cast<unsigned int>(times) * gridDim.x;
  const long long start = clock64();
  for (;;) {
    unsigned int arrived;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(arrived)
                 : "l"(&block.workspace->barrier)
                 : "memory");
    if (arrived >= target) break;
    if (clock64() - start > kBarrierLimit) __trap();
  }
}

// A published word is the complement of its bits; a word that is not there yet is zero. The one
// pattern that would be zero is a NaN, for which another NaN stands. Whoever has a whole vector of
// some kind knows that all blocks have read the vectors before it, for they needed them to make
// their part. So behind a layer's attention a block takes back its words of the layer before (of
// after_mlp those of two layers before), and then arrives; it waits for the others' arrival one
// product later, when most have long arrived, and only behind that words are used again.

__device__ inline uint32_t encoded(uint32_t bits) {
  return bits == 0xFFFFFFFFU ? 0x80000000U : ~bits;
}

__device__ inline void publish(uint32_t* to, uint32_t bits) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(encoded(bits)) : "memory");
}

/// Where pair `pair` of a row of activations is published: beside FP8 weights, of which a lane has
/// 16 columns in a row, so that the lanes' first halves of them are neighbours and their second
/// halves, for then a load of 16 bytes a lane touches whole sectors. Pairs 4i to 4i + 3 stay
/// together.
__device__ inline int pair_place(int pair, bool weight_is_f8) {
  return weight_is_f8 ? (pair & ~31) | (pair & 4) << 2 | (pair >> 1 & 12) | (pair & 3) : pair;
}

/// Two words, at a multiple of 8 bytes.
__device__ inline void publish2(uint32_t* to, uint32_t first, uint32_t second) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(encoded(first)),
               "r"(encoded(second))
               : "memory");
}

__device__ inline void take_back(uint32_t* word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(0) : "memory");
}

/// Four words in a row, at a multiple of 16 bytes.
__device__ inline void take_back4(uint32_t* words) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(words), "r"(0)
               : "memory");
}

__device__ inline uint4 peek4(const uint32_t* from) {
  uint4 words;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}

__device__ inline uint32_t peek(const uint32_t* from) {
  uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}

__device__ inline uint2 peek2(const uint32_t* from) {
  uint2 words;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(from));
  return words;
}

/// 0 if one is missing.
__device__ inline uint32_t least_of(const uint4& words) {
  return min(min(words.x, words.y), min(words.z, words.w));
}

/// What published words stand for.
__device__ inline float4 decoded(uint4 words) {
  return {__uint_as_float(~words.x), __uint_as_float(~words.y), __uint_as_float(~words.z),
          __uint_as_float(~words.w)};
}

/// A word of what is not published, so that nobody waits for it; stands for 0.
constexpr uint32_t kNothing = 0xFFFFFFFFU;

/// Published words that a warp waits for together, so that late ones share their way to L2.
template <int kCount>
struct Awaited {
  uint4 at[kCount];

  __device__ void ask(int i, const uint32_t* from, bool is_wanted = true) {
    at[i] = {kNothing, kNothing, kNothing, kNothing};
    if (is_wanted) at[i] = peek4(from);
  }
  /// Reads the first kWanted again, all that are missing at once, until all are there.
  template <int kWanted, typename From>
  __device__ void wait_first(const From& from) {
    wait_first<kWanted>(from, [] { return true; });
  }
  /// And until `others()` are there too, which does the same.
  template <int kWanted, typename From, typename Others>
  __device__ void wait_first(const From& from, const Others& others) {
#pragma unroll 1
    for (int tries = 0;; ++tries) {
      uint32_t least = kNothing;
#pragma unroll
      for (int i = 0; i < kWanted; ++i) least = min(least, least_of(at[i]));
      const bool others_are = others();
      if (__all_sync(0xFFFFFFFFU, least != 0 && others_are)) return;
      if (tries > kPollLimit) __trap();
#pragma unroll
      for (int i = 0; i < kWanted; ++i) {
        if (least_of(at[i]) == 0) at[i] = peek4(from(i));
      }
    }
  }
  template <typename From, typename Others>
  __device__ void wait(const From& from, const Others& others) {
    wait_first<kCount>(from, others);
  }
  template <typename From>
  __device__ void wait(const From& from) {
    wait_first<kCount>(from);
  }
};

}  // namespace glimpse::cuda::fused
