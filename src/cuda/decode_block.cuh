// What a block of the fused decoder (decode_layers.cu) knows and keeps in shared memory, and how
// the blocks tell each other their results: one grid barrier per layer, and published words.
#pragma once

#include "cuda/decode_layers.h"
#include "cuda/weight_ring.cuh"

namespace glimpse::cuda::fused {

// One block per multiprocessor. Every warp runs the code around the products: fewer warps run less
// of it, and with all registers there are no spills.
constexpr int kStreamThreads = 256;
constexpr int kStreamWarps = kStreamThreads / 32;
constexpr int kFewRows = 2;
/// Units under way: 64 KiB per multiprocessor with few sequences; with many, whose activations need
/// the room, 32 KiB.
constexpr int kRingDepth = 2;
/// Layers whose pointers a block has at hand. A warp that has weights in a layer at all is with its
/// copies at most kRingDepth + 1 layers ahead, and this many less two are there from its first
/// product on.
constexpr int kLayersAhead = kRingDepth + 3;

constexpr int kPageTokens = 32;
constexpr int kHalf = kDecodeHeadDim / 2;
constexpr int kMaxGroup = 4;  // query heads per kv head
constexpr int kMaxHidden = 6144;
constexpr int kMaxIntermediate = 28672;
constexpr int kMaxQkvHeads = 96;  // of queries, keys and values together
constexpr int kMaxBlocks = 256;
// 99 KiB per block on every card.
constexpr int kSharedBytes = 98 * 1024;
constexpr int kMaxChunkBlocks = 96;    // of 128 columns, staged at once
constexpr int kMaxWeightScales = 384;  // of a block's part of a product
constexpr int kTailBytes = 3 * 1024;

/// A block's shared memory: the ring ([kStreamWarps, kRingDepth] units), sums, staged activations
/// and their scales, the weights' scales of this product and the next one, the norm's weights of
/// the block's hidden columns, its share of the residual stream of all rows, and the tail.
template <bool kMany>
struct Layout {
  static constexpr int kRows = kMany ? kStreamRows : kFewRows;
  static constexpr int kTiles = kMany ? 10 : 20;  // whose sums wait at once
  using Unit = RingUnit<kMany>;
  using Scratch = StreamScratch<kStreamWarps, kRows, kTiles>;
  static constexpr int kRingBytes = kStreamWarps * kRingDepth * static_cast<int>(sizeof(Unit));
  static constexpr int kScratchBytes = static_cast<int>(sizeof(Scratch));
  static constexpr int kScaleBytes = kMaxChunkBlocks * kRows * 4;
  static constexpr int kWeightScaleBytes = 2 * kMaxWeightScales * 4;
  static constexpr int kNormFloats = kMany ? 192 : 256;
  static constexpr int kResidualFloats = kMany ? 1280 : 768;
  static constexpr int kStagedBytes = kSharedBytes - kRingBytes - kScratchBytes - kScaleBytes -
                                      kWeightScaleBytes - (kNormFloats + kResidualFloats) * 4 -
                                      kTailBytes;
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

/// What a block says of its part of a row: the largest magnitude and the sum of the squares, as the
/// bits of floats.
using PublishedStatistics = uint32_t[2];

/// A vector of each row that every block needs whole, in pieces from every block.
template <int kWords>
struct PublishedRows {
  uint32_t words[kDecodeRows * kWords];                     // [rows, as many as a row has]
  PublishedStatistics statistics[kDecodeRows][kMaxBlocks];  // of the blocks' pieces
};

/// What the blocks tell each other within a layer, as published words.
struct Exchange {
  uint32_t qkv[kDecodeRows * kMaxQkvHeads * kDecodeHeadDim / 2];  // bf16 pairs
  // The residual stream times the weight of the norm that reads it, f32 or, of many rows, bf16
  // pairs; the statistics' squares are those of the stream itself.
  PublishedRows<kMaxHidden> after_attention;
  PublishedRows<kMaxHidden> after_mlp;
  PublishedRows<kMaxIntermediate / 2> inner;  // bf16 pairs
  // [rows, heads]: as it is staged, two numbers a word, and beside FP8 weights each head's scale.
  uint32_t attended[kDecodeRows * kDecodeMaxHeads * kHalf];
  uint32_t attended_scales[kDecodeRows * kDecodeMaxHeads];
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

/// What stays the same of a product from layer to layer; worked out once per launch.
struct ProductShape {
  int outputs, columns;
  TileRows rows;
  PassPlan pass;         // of the first pass over a whole chunk
  PassPlan last;         // of the first pass over the last chunk
  int chunk_columns;     // that shared memory holds at once, whole blocks
  Divisor scale_stride;  // of the weights' scales in shared memory: whole units
  int scale_blocks;      // of 128 rows
  int scale_columns;     // in device memory
  bool chunks_add_up;    // in the slots: all chunks are dealt alike, each in one pass

  __device__ const PassPlan& pass_over(int first_column) const {
    return first_column + chunk_columns < columns ? pass : last;
  }
};

/// Where a warp's first run of units of a product is.
struct alignas(16) FirstRun {
  uint16_t row, last_row;    // of its tile; of the block's
  uint16_t unit, run, left;  // in the row; of the run; of the pass behind it
  uint16_t units;            // of a row
  uint8_t half, per_tile;    // see TileRows
  bool is_whole;             // the product is one pass over one chunk
};
static_assert(sizeof(FirstRun) == 16);

/// What one lane adds up of a tile's sums: two outputs' sums from `num_slots` slots.
struct SumItem {
  uint32_t from : 12;      // of the first slot: floats from the slots' begin
  uint32_t num_slots : 4;  // 0: the lane has nothing
  uint32_t output : 16;    // the first of the two, from the block's first on
};
/// Of the first pass, that are worked out once per launch.
constexpr int kSumItems = 64;

/// One kv head of one sequence over a run of its keys: a block's work.
struct AttentionUnit {
  int row, kv_head, split;
  int context;
  int first_token, last_token;  // empty for splits that a short context does not need
};

/// The sums of a product's last pass, which wait in the slots.
struct LastPass {
  const PassPlan* plan;
  int first_tile;
  float factor;  // what is left of the norm of the row that this warp adds up
};

/// The end of a block's shared memory.
struct BlockTail {
  float2 statistics[kDecodeRows];  // of a product's passes so far
  DecodeArguments arguments;
  DecodeLayer layers[kLayersAhead];  // this one's pointers and the next ones'
  ProductShape shapes[kDecodeProducts];
  PassPlan pass;  // of later passes and chunks
  FirstRun first_runs[kStreamWarps][kDecodeProducts];
  SumItem first_sums[kDecodeProducts][kSumItems];
  AttentionUnit unit;  // this block's first
  int max_splits;
  int context[kDecodeRows];
};
static_assert(sizeof(BlockTail) <= kTailBytes);

/// A block's shared memory and what it shares with the others.
struct Block {
  const DecodeArguments& a;
  Workspace* workspace;
  void* sums;            // Layout::Scratch
  uint16_t* staged;      // Layout::kStagedBytes
  float* staged_scales;  // [kMaxChunkBlocks, scale_rows]
  float* weight_scales;  // [2, kMaxWeightScales] of products with even and odd numbers
  float* norm_weights;   // [this block's hidden columns] of the norm that comes next
  float* residual;       // [rows, this block's hidden columns]
  BlockTail* tail;

  __device__ Staged stage_of(int stride, int scale_rows) const {
    return {staged, staged_scales, stride, scale_rows};
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
  uint8_t* const sums = shared_memory() + L::kRingBytes;
  uint8_t* const staged = sums + L::kScratchBytes;
  uint8_t* const scales = staged + L::kStagedBytes;
  BlockTail& tail = tail_of_block();
  auto* const weight_scales = reinterpret_cast<float*>(scales + L::kScaleBytes);
  float* const norm_weights = weight_scales + 2 * kMaxWeightScales;
  return {tail.arguments,
          static_cast<Workspace*>(tail.arguments.workspace),
          sums,
          reinterpret_cast<uint16_t*>(staged),
          reinterpret_cast<float*>(scales),
          weight_scales,
          norm_weights,
          norm_weights + L::kNormFloats,
          &tail};
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

__device__ inline void publish(uint32_t* to, float low, float high) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to),
               "r"(encoded(__float_as_uint(low))), "r"(encoded(__float_as_uint(high)))
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

__device__ inline bool is_there(uint4 words) {
  return words.x != 0 && words.y != 0 && words.z != 0 && words.w != 0;
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
  /// Reads again, all that are missing at once, until all are there and `others()` are too, which
  /// does the same.
  template <typename From, typename Others>
  __device__ void wait(const From& from, const Others& others) {
#pragma unroll 1
    for (int tries = 0;; ++tries) {
      bool all = others();
#pragma unroll
      for (int i = 0; i < kCount; ++i) all = all && is_there(at[i]);
      if (__all_sync(0xFFFFFFFFU, all)) return;
      if (tries > kPollLimit) __trap();
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (!is_there(at[i])) at[i] = peek4(from(i));
      }
    }
  }
  template <typename From>
  __device__ void wait(const From& from) {
    wait(from, [] { return true; });
  }
};

}  // namespace glimpse::cuda::fused
