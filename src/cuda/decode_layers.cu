// One block per multiprocessor, all resident, in five phases per layer:
//
//   norm + qkv | q/k norm, rotary, KV store, attention | o_proj + residual | norm + gate, up, SiLU
//   | down_proj + residual
//
// Each product streams its matrix once (weight_stream.cuh); as soon as a warp has used its last
// weights it starts the next product's, so the memory stays busy while blocks wait for each other.
// After qkv the blocks meet at a grid barrier. All other results travel as words that say
// themselves whether they are there (publish() and collect() below): the reader of a phase polls
// the very words it needs, which costs one trip through L2 instead of a fence, a counter and a
// load. Bytes moved per step: every weight, and the keys and values of each sequence, once.
#include "cuda/decode_layers.h"

#include <cuda_fp8.h>

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {
namespace {

// One block per multiprocessor. Every warp runs the code around the products: fewer warps run less
// of it, and with all registers there are no spills.
constexpr int kStreamThreads = 256;
constexpr int kStreamWarps = kStreamThreads / 32;
constexpr int kStages = 4;
using Scratch = StreamScratch<kStreamWarps>;

constexpr int kPageTokens = 32;
constexpr int kHalf = kDecodeHeadDim / 2;
constexpr int kMaxGroup = 4;  // query heads per kv head
constexpr int kMaxHidden = 8192;
constexpr int kMaxIntermediate = 32768;
constexpr int kMaxBlocks = 256;
// 99 KiB per block on every card.
constexpr int kSharedBytes = 98 * 1024;
constexpr int kResidualFloats = 2048;  // a block's share of the residual stream, all rows
constexpr int kMaxChunkBlocks = 96;    // of 128 columns, staged at once
constexpr int kTailBytes = 3 * 1024;
constexpr int kStagedBytes = kSharedBytes - static_cast<int>(sizeof(Scratch)) -
                             kResidualFloats * 4 - kMaxChunkBlocks * kStreamRows * 4 - kTailBytes;
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
constexpr int kPartialWords = kDecodeHeadDim + 2;

/// What the blocks tell each other within a layer, as published words.
struct Exchange {
  uint32_t after_attention[kDecodeRows * kMaxHidden];  // the residual stream, f32
  uint32_t after_mlp[kDecodeRows * kMaxHidden];
  uint32_t inner[kDecodeRows * kMaxIntermediate / 2];  // bf16 pairs
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
  PassPlan pass;      // of the first pass over the first chunk
  int chunk_columns;  // that shared memory holds at once, whole blocks
};

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
};

/// The end of a block's shared memory.
struct BlockTail {
  float reduction[kStreamWarps];
  float norm_factors[kDecodeRows];  // 1 / rms of each row
  DecodeArguments arguments;
  DecodeLayer layers[2];  // this layer's pointers and the next one's
  ProductShape shapes[kDecodeProducts];
  PassPlan pass;       // of later passes and chunks
  LastPass last_pass;  // of qkv, for the function that attends
  AttentionUnit unit;  // this block's first
  int max_splits;
  int context[kDecodeRows];
};
static_assert(sizeof(BlockTail) <= kTailBytes);

/// A block's shared memory and what it shares with the others.
struct Block {
  const DecodeArguments& a;
  Workspace* workspace;
  Scratch* scratch;
  uint16_t* staged;      // kStagedBytes
  float* staged_scales;  // [kMaxChunkBlocks, kStreamRows]
  float* residual;       // [rows, this block's hidden columns]
  BlockTail* tail;

  __device__ Staged stage_of(int stride) const { return {staged, staged_scales, stride}; }
};

__device__ inline uint8_t* shared_memory() {
  extern __shared__ __align__(16) uint8_t shared[];
  return shared;
}

__device__ inline BlockTail& tail_of_block() {
  return *reinterpret_cast<BlockTail*>(shared_memory() + kSharedBytes - kTailBytes);
}

__device__ inline Block this_block() {
  uint8_t* const staged = shared_memory() + sizeof(Scratch);
  auto* const scales = reinterpret_cast<float*>(staged + kStagedBytes);
  BlockTail& tail = tail_of_block();
  return {tail.arguments,
          static_cast<Workspace*>(tail.arguments.workspace),
          reinterpret_cast<Scratch*>(shared_memory()),
          reinterpret_cast<uint16_t*>(staged),
          scales,
          scales + kMaxChunkBlocks * kStreamRows,
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

__device__ inline void arrive(const Block& block) {
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(&block.workspace->barrier)
                 : "memory");
  }
}

/// Until all blocks have arrived `times` times.
__device__ inline void wait(const Block& block, int times) {
  if (threadIdx.x == 0) {
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
  __syncthreads();
}

// A published word is the complement of its bits; a word that is not there yet is zero. The one
// pattern that would be zero is a NaN, for which another NaN stands. Words of a layer are taken
// back by their writers behind the next layer's barrier, which no reader passes before it has read
// them; they are used again in the layer after that, behind another barrier.

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

__device__ inline uint4 peek4(const uint32_t* from) {
  uint4 words;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}

__device__ inline uint2 peek2(const uint32_t* from) {
  uint2 words;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(from));
  return words;
}

/// `words` as first peeked; reads again until all are there.
__device__ inline float4 collect(const uint32_t* from, uint4 words) {
  for (int tries = 0; words.x == 0 || words.y == 0 || words.z == 0 || words.w == 0; ++tries) {
    if (tries > kPollLimit) __trap();
    words = peek4(from);
  }
  return {__uint_as_float(~words.x), __uint_as_float(~words.y), __uint_as_float(~words.z),
          __uint_as_float(~words.w)};
}

__device__ inline uint2 collect(const uint32_t* from, uint2 words) {
  for (int tries = 0; words.x == 0 || words.y == 0; ++tries) {
    if (tries > kPollLimit) __trap();
    words = peek2(from);
  }
  return {~words.x, ~words.y};
}

// ---- products -----------------------------------------------------------------------------------

template <typename W>
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
  const int fit = min((kStagedBytes / (a.rows * 2) - 32) / kBlockColumns, kMaxChunkBlocks);
  const int blocks = (shape.columns + kBlockColumns - 1) / kBlockColumns;
  const int chunks = (blocks + fit - 1) / fit;
  shape.chunk_columns = (blocks + chunks - 1) / chunks * kBlockColumns;
  shape.pass = PassPlan::make(shape.rows.tiles,
                              min(shape.chunk_columns, shape.columns) * static_cast<int>(sizeof(W)),
                              kStreamWarps);
  return shape;
}

/// One product of one layer: only references into shared memory, to keep registers free for
/// weights.
template <typename W>
struct Product {
  const DecodeLayer& layer;
  const ProductShape& shape;
  DecodeProduct product;

  __device__ Product(const Block& block, const DecodeLayer& of_layer, DecodeProduct which)
      : layer(of_layer), shape(block.tail->shapes[static_cast<int>(which)]), product(which) {}

  __device__ bool is_paired() const { return product == DecodeProduct::gate_up; }
  __device__ int row_bytes() const { return shape.columns * static_cast<int>(sizeof(W)); }
  __device__ const uint8_t* lower() const {
    return static_cast<const uint8_t*>(layer.weights[static_cast<int>(product)]);
  }
  __device__ const uint8_t* upper() const {
    return is_paired() ? static_cast<const uint8_t*>(layer.up) : lower();
  }

  __device__ LaneRows locate(int tile, int first_column) const {
    const int scale_columns = (shape.columns + kBlockColumns - 1) / kBlockColumns;
    const float* scales = layer.scales[static_cast<int>(product)];
    const int offset = first_column * static_cast<int>(sizeof(W));
    LaneRows at =
        lane_rows<W>(shape.rows, is_paired(), tile, lower() + offset, upper() + offset, scales,
                     is_paired() ? layer.up_scales : scales, row_bytes(), scale_columns);
    at.lower_scale += first_column / kBlockColumns;
    at.upper_scale += first_column / kBlockColumns;
    return at;
  }
};

/// Copies the published bf16 rows of the MLP into shared memory.
template <typename W, bool kMany>
__device__ void stage_inner(const Block& block, const uint32_t* inner, int first, int count,
                            const Staged& staged) {
  const DecodeArguments& a = block.a;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = (count + kBlockColumns - 1) / kBlockColumns;
  const Divisor per_row = Divisor::of(blocks);
  const int total = a.rows * blocks;
  constexpr int kAtOnce = kMany ? 12 : 6;
#pragma unroll 1
  for (int base = warp; base < total; base += kAtOnce * kStreamWarps) {
    uint2 words[kAtOnce] = {};
    int from[kAtOnce];  // negative: beyond the row's end
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamWarps;
      const int row = per_row.divide(item);
      const int column = (item - row * blocks) * kBlockColumns + lane * 4;
      from[i] =
          item < total && column < count ? (row * a.intermediate_size + first + column) / 2 : -1;
      if (from[i] >= 0) words[i] = peek2(inner + from[i]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamWarps;
      if (item >= total) break;
      const int row = per_row.divide(item);
      const uint2 pairs = from[i] >= 0 ? collect(inner + from[i], words[i]) : uint2{0, 0};
      const float four[4] = {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xFFFF0000U),
                             __uint_as_float(pairs.y << 16),
                             __uint_as_float(pairs.y & 0xFFFF0000U)};
      put_staged<W>(staged, row, item - row * blocks, four);
    }
  }
}

__device__ inline int warps_per_row(int rows) {
  return rows > 4 ? 1 : rows > 2 ? 2 : rows > 1 ? 4 : 8;
}

/// The residual stream times the norm's weight, staged; find_norm_factors() has the rest of
/// rms_norm. Several warps share a row.
template <typename W, bool kMany>
__device__ void stage_norm(const Block& block, const uint32_t* published, const float* weight,
                           const Staged& staged) {
  const DecodeArguments& a = block.a;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int sharing = warps_per_row(a.rows);
  const int row = warp / sharing;
  if (row >= a.rows) return;
  const int blocks = (a.hidden_size + kBlockColumns - 1) / kBlockColumns;
  const bool is_input = published == nullptr;
  const uint32_t* from =
      (is_input ? reinterpret_cast<const uint32_t*>(a.hidden) : published) + row * a.hidden_size;
  float sum = 0;
  constexpr int kAtOnce = kMany ? 8 : 4;
#pragma unroll 1
  for (int base = warp % sharing; base < blocks; base += kAtOnce * sharing) {
    uint4 words[kAtOnce];
    float4 weights[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int column = (base + i * sharing) * kBlockColumns + lane * 4;
      words[i] = {0, 0, 0, 0};
      weights[i] = {0, 0, 0, 0};
      if (column < a.hidden_size) {
        words[i] = peek4(from + column);
        weights[i] = __ldg(reinterpret_cast<const float4*>(weight + column));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = base + i * sharing;
      if (index >= blocks) break;
      const int column = index * kBlockColumns + lane * 4;
      float4 x{__uint_as_float(words[i].x), __uint_as_float(words[i].y),
               __uint_as_float(words[i].z), __uint_as_float(words[i].w)};
      if (!is_input && column < a.hidden_size) x = collect(from + column, words[i]);
      sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      const float4 w = weights[i];
      const float four[4] = {x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w};
      put_staged<W>(staged, row, index, four);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) block.tail->reduction[warp] = sum;
}

/// 1 / rms of each row, from the sums that stage_norm() left. Read after the block's next meeting.
__device__ inline void find_norm_factors(const Block& block) {
  const DecodeArguments& a = block.a;
  const int row = static_cast<int>(threadIdx.x);
  if (row >= a.rows) return;
  const int sharing = warps_per_row(a.rows);
  float total = 0;
#pragma unroll 1
  for (int i = 0; i < sharing; ++i) total += block.tail->reduction[row * sharing + i];
  block.tail->norm_factors[row] =
      rsqrtf(__fdividef(total, static_cast<float>(a.hidden_size)) + a.epsilon);
}

// ---- attention ----------------------------------------------------------------------------------

__device__ inline int splits_of(int context, int max_splits) {
  if (context <= 0) return 0;
  return max(1, min(max_splits, (context + kTokensPerSplit - 1) / kTokensPerSplit));
}

__device__ AttentionUnit attention_unit(const Block& block, int index) {
  const DecodeArguments& a = block.a;
  const int max_splits = block.tail->max_splits;
  AttentionUnit unit;
  unit.split = index % max_splits;
  unit.kv_head = index / max_splits % a.num_kv_heads;
  unit.row = index / max_splits / a.num_kv_heads;
  unit.context = unit.row < a.rows ? block.tail->context[unit.row] : 0;
  const int splits = splits_of(unit.context, max_splits);
  const bool used = unit.split < splits;
  // Splits begin at whole tiles, so that a tile lies in one page.
  const int tiles = (unit.context + kTileTokens - 1) / kTileTokens;
  unit.first_token = used ? kTileTokens * share_begin(tiles, unit.split, splits) : 0;
  unit.last_token =
      used ? min(kTileTokens * share_begin(tiles, unit.split + 1, splits), unit.context) : 0;
  return unit;
}

__device__ inline uint32_t* partial_of(const Block& block, Exchange& exchange, int row, int head,
                                       int split) {
  return exchange.partials[(row * block.a.num_heads + head) * block.tail->max_splits + split];
}

/// One head of a token by one warp: lane holds dimensions lane + 32 i.
struct HeadLane {
  float x[4];
};

/// What a head's norm and rotation need besides the head: loaded before the barrier.
struct HeadConstants {
  float norm[4];
  float cosines[2];
  float sines[2];
};

__device__ inline HeadConstants load_head_constants(const DecodeArguments& a, const float* norm,
                                                    int row) {
  const int lane = threadIdx.x % 32;
  HeadConstants constants;
#pragma unroll
  for (int i = 0; i < 4; ++i) constants.norm[i] = norm != nullptr ? __ldg(norm + lane + 32 * i) : 1;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    constants.cosines[i] = __ldg(a.cosines + row * kHalf + lane + 32 * i);
    constants.sines[i] = __ldg(a.sines + row * kHalf + lane + 32 * i);
  }
  return constants;
}

__device__ inline HeadLane load_head(const Bf16* qkv) {
  HeadLane head;
  const auto* bits = reinterpret_cast<const unsigned short*>(qkv) + threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    head.x[i] = __bfloat162float(__ushort_as_bfloat16(__ldcg(bits + 32 * i)));
  }
  return head;
}

/// Norm (where the model has one), then rotary: rounded to bf16 after each, as the unfused
/// operations do.
__device__ inline void norm_and_rotate(HeadLane& head, const HeadConstants& constants,
                                       bool has_norm, float epsilon) {
  if (has_norm) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += head.x[i] * head.x[i];
    const float factor = rsqrtf(warp_sum(sum) / kDecodeHeadDim + epsilon);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      head.x[i] = __bfloat162float(__float2bfloat16(head.x[i] * factor * constants.norm[i]));
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float c = constants.cosines[i];
    const float s = constants.sines[i];
    const float low = head.x[i];
    const float high = head.x[i + 2];
    head.x[i] = __bfloat162float(__float2bfloat16(low * c - high * s));
    head.x[i + 2] = __bfloat162float(__float2bfloat16(high * c + low * s));
  }
}

/// A head's 128 numbers in the cache's format, in device memory and in shared memory.
template <bool kKvF8>
__device__ inline void store_head(const HeadLane& head, void* cache, float* scales, int64_t entry,
                                  void* copy, float* scale_copy) {
  const int lane = threadIdx.x % 32;
  if constexpr (kKvF8) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(head.x[i]));
    largest = warp_max(largest);
    const float scale = largest > 0 ? largest / 448.0F : 1.0F;
    auto* to = static_cast<uint8_t*>(cache) + entry * kDecodeHeadDim;
    if (lane == 0) {
      if (entry >= 0) scales[entry] = scale;
      *scale_copy = scale;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint8_t bits = __nv_cvt_float_to_fp8(head.x[i] / scale, __NV_SATFINITE, __NV_E4M3);
      if (entry >= 0) to[lane + 32 * i] = bits;
      static_cast<uint8_t*>(copy)[lane + 32 * i] = bits;
    }
  } else {
    auto* to = static_cast<Bf16*>(cache) + entry * kDecodeHeadDim;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Bf16 bits = __float2bfloat16(head.x[i]);
      if (entry >= 0) to[lane + 32 * i] = bits;
      static_cast<Bf16*>(copy)[lane + 32 * i] = bits;
    }
  }
}

/// Shared memory of the attention phase; lies where products stage their activations.
struct AttentionShared {
  Bf16 queries[kMaxGroup][kDecodeHeadDim + 8];
  uint4 new_key[16];  // the newest token as the cache stores it
  uint4 new_value[16];
  float new_key_scale, new_value_scale;
  float padding[2];
  Partial partials[kMaxGroup][kStreamWarps];
};
static_assert(sizeof(AttentionShared) <= kStagedBytes);

/// 16 tokens' keys and values as stored, as one warp holds them: lane (g, t) = (lane / 4, lane % 4)
/// has pieces t of the keys of tokens g and g + 8, and pieces g of the values of tokens 2t, 2t + 1,
/// 2t + 8 and 2t + 9.
template <bool kKvF8>
struct KvTile {
  static constexpr int kKeyPieces = kKvF8 ? 2 : 4;
  static constexpr int kValuePieces = kKvF8 ? 1 : 2;
  uint4 keys[2][kKeyPieces];
  uint4 values[4][kValuePieces];
  float key_scales[4];  // e4m3: of the value's tokens
  float value_scales[4];
};

__device__ inline int value_token(int i) {
  return static_cast<int>(threadIdx.x) % 4 * 2 + i % 2 + i / 2 * 8;
}

/// This warp's first token in a unit's round.
__device__ inline int tile_begin(const AttentionUnit& unit, int round) {
  return unit.first_token + round * kTokensPerRound +
         static_cast<int>(threadIdx.x) / 32 * kTileTokens;
}

template <bool kKvF8>
__device__ void load_tile(const DecodeArguments& a, const DecodeLayer& layer,
                          const AttentionUnit& unit, int begin, KvTile<kKvF8>& tile) {
  if (begin >= unit.last_token) return;
  constexpr int kBytes = kDecodeHeadDim * (kKvF8 ? 1 : 2);
  const int lane = threadIdx.x % 32;
  const int page = __ldg(a.page_table + int64_t{unit.row} * a.max_pages + begin / kPageTokens);
  const int64_t entry =
      (int64_t{page} * a.num_kv_heads + unit.kv_head) * kPageTokens + begin % kPageTokens;
  const int last = unit.last_token - 1 - begin;  // tokens beyond repeat it
  const auto* keys = static_cast<const uint8_t*>(layer.keys) + entry * kBytes + lane % 4 * 16;
  const auto* values = static_cast<const uint8_t*>(layer.values) + entry * kBytes + lane / 4 * 16;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint8_t* from = keys + min(lane / 4 + 8 * i, last) * kBytes;
#pragma unroll
    for (int piece = 0; piece < KvTile<kKvF8>::kKeyPieces; ++piece) {
      tile.keys[i][piece] = __ldcg(reinterpret_cast<const uint4*>(from + piece * 64));
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = min(value_token(i), last);
    const uint8_t* from = values + token * kBytes;
#pragma unroll
    for (int piece = 0; piece < KvTile<kKvF8>::kValuePieces; ++piece) {
      tile.values[i][piece] = __ldcg(reinterpret_cast<const uint4*>(from + piece * 128));
    }
    if constexpr (kKvF8) {
      tile.key_scales[i] = __ldcg(layer.key_scales + entry + token);
      tile.value_scales[i] = __ldcg(layer.value_scales + entry + token);
    }
  }
}

/// Puts the newest token into a tile that was loaded before it was stored. `newest` counts from the
/// tile's first token; the tokens behind it repeat it.
template <bool kKvF8>
__device__ void patch_tile(const AttentionShared& shared, int newest, KvTile<kKvF8>& tile) {
  if (newest >= kTileTokens) return;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (lane / 4 + 8 * i < newest) continue;
#pragma unroll
    for (int piece = 0; piece < KvTile<kKvF8>::kKeyPieces; ++piece) {
      tile.keys[i][piece] = shared.new_key[piece * 4 + lane % 4];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (value_token(i) < newest) continue;
#pragma unroll
    for (int piece = 0; piece < KvTile<kKvF8>::kValuePieces; ++piece) {
      tile.values[i][piece] = shared.new_value[piece * 8 + lane / 4];
    }
    if constexpr (kKvF8) {
      tile.key_scales[i] = shared.new_key_scale;
      tile.value_scales[i] = shared.new_value_scale;
    }
  }
}

/// Prepares the queries of one kv head and, in the split that owns the newest token, its key and
/// value. Warps below the group size take a query head each, the next two the key and the value.
template <bool kKvF8>
__device__ void prepare_heads(const Block& block, const DecodeLayer& layer,
                              const AttentionUnit& unit, const HeadConstants& constants,
                              AttentionShared& shared) {
  const DecodeArguments& a = block.a;
  const int group = a.num_heads / a.num_kv_heads;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const bool owns_newest = unit.last_token == unit.context;
  if (warp >= group + 2 || (warp >= group && !owns_newest)) return;
  const int qkv_width = (a.num_heads + 2 * a.num_kv_heads) * kDecodeHeadDim;
  const Bf16* qkv = static_cast<const Bf16*>(a.qkv) + int64_t{unit.row} * qkv_width;
  const int head_index = warp < group    ? unit.kv_head * group + warp
                         : warp == group ? a.num_heads + unit.kv_head
                                         : a.num_heads + a.num_kv_heads + unit.kv_head;
  HeadLane head = load_head(qkv + head_index * kDecodeHeadDim);
  if (warp <= group) {
    norm_and_rotate(head, constants, (warp < group ? layer.q_norm : layer.k_norm) != nullptr,
                    a.epsilon);
  }
  if (warp < group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shared.queries[warp][lane + 32 * i] = __float2bfloat16(head.x[i]);
    }
    return;
  }
  const int slot = __ldg(a.slots + unit.row);
  const int64_t entry =
      slot < 0 ? -1
               : (int64_t{slot / kPageTokens} * a.num_kv_heads + unit.kv_head) * kPageTokens +
                     slot % kPageTokens;
  if (warp == group) {
    store_head<kKvF8>(head, layer.keys, layer.key_scales, entry, shared.new_key,
                      &shared.new_key_scale);
  } else {
    store_head<kKvF8>(head, layer.values, layer.value_scales, entry, shared.new_value,
                      &shared.new_value_scale);
  }
}

/// c += queries * keys of eight tokens: c[0], c[1] are head g's scores of tokens 2t and 2t + 1.
template <bool kKvF8>
__device__ inline void score(const uint4& key, const Bf16* query, float (&c)[4]) {
  const uint32_t words[4] = {key.x, key.y, key.z, key.w};
  const auto* q = reinterpret_cast<const uint32_t*>(query);
  if constexpr (kKvF8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Conversion takes every other byte, so the queries' pairs are regrouped alike.
      const uint32_t a[4] = {__byte_perm(q[2 * i], q[2 * i + 1], 0x5410), 0,
                             __byte_perm(q[2 * i], q[2 * i + 1], 0x7632), 0};
      mma_bf16(c, a, bf16_pair_of_e4m3(words[i] << 8), bf16_pair_of_e4m3(words[i]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t a[4] = {q[2 * i], 0, q[2 * i + 1], 0};
      mma_bf16(c, a, words[2 * i], words[2 * i + 1]);
    }
  }
}

/// Four values of one dimension pair as the A operand: rows are dimensions 2i and 2i + 1 of this
/// lane's pieces, columns its four tokens.
template <bool kKvF8>
__device__ inline void value_operand(const KvTile<kKvF8>& tile, int i, uint32_t (&a)[4]) {
  const auto word = [&](int token) {
    const uint4& piece = tile.values[token][kKvF8 ? 0 : i / 4];
    const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
    return words[kKvF8 ? i / 2 : i % 4];
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t first = word(2 * half);
    const uint32_t second = word(2 * half + 1);
    if constexpr (kKvF8) {
      const uint32_t byte = i % 2 * 2;
      a[2 * half] = bf16_pair_of_e4m3(__byte_perm(first, second, byte << 4 | (byte + 4) << 12));
      a[2 * half + 1] =
          bf16_pair_of_e4m3(__byte_perm(first, second, (byte + 1) << 4 | (byte + 5) << 12));
    } else {
      a[2 * half] = __byte_perm(first, second, 0x5410);
      a[2 * half + 1] = __byte_perm(first, second, 0x7632);
    }
  }
}

/// A warp's attention so far. Lane (g, t) has head g's statistics (its own tokens' weights) and, of
/// heads 2t and 2t + 1, the sums of the dimensions that its pieces of values bring.
struct WarpAttention {
  float sums[8][4] = {};  // [dimension pair][2 * dimension + head]
  float maximum = -INFINITY;
  float weight_sum = 0;
};

/// A tile of tokens, `count` of them valid, added to a warp's attention.
template <bool kKvF8>
__device__ void attend_tile(const KvTile<kKvF8>& tile, const AttentionShared& shared, int group,
                            int count, WarpAttention& state) {
  const int lane = threadIdx.x % 32;
  const int t = lane % 4;
  // Rows of the operand beyond the group's heads repeat the last one: nobody reads them.
  const Bf16* query = shared.queries[min(lane / 4, group - 1)];
  float c[2][4] = {};
#pragma unroll
  for (int piece = 0; piece < KvTile<kKvF8>::kKeyPieces; ++piece) {
    const Bf16* q = query + (kKvF8 ? piece * 64 + t * 16 : piece * 32 + t * 8);
    score<kKvF8>(tile.keys[0][piece], q, c[0]);
    score<kKvF8>(tile.keys[1][piece], q, c[1]);
  }
  // log2(e) / sqrt(128): the softmax works in powers of two.
  constexpr float kScale = 1.44269504F * 0.08838834764F;
  float scores[4] = {c[0][0], c[0][1], c[1][0], c[1][1]};
  float largest = state.maximum;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scores[i] *= kKvF8 ? kScale * tile.key_scales[i] : kScale;
    if (value_token(i) >= count) scores[i] = -INFINITY;
    largest = fmaxf(largest, scores[i]);
  }
  largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, 2));
  const float keep = exp2f(state.maximum - largest);
  state.maximum = largest;
  state.weight_sum *= keep;
  float weights[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    weights[i] = exp2f(scores[i] - largest);
    state.weight_sum += weights[i];
    if constexpr (kKvF8) weights[i] *= tile.value_scales[i];
  }
  const float keep_low = __shfl_sync(0xFFFFFFFFU, keep, 8 * t);
  const float keep_high = __shfl_sync(0xFFFFFFFFU, keep, 8 * t + 4);
  const uint32_t b0 = bf16_pair(weights[0], weights[1]);
  const uint32_t b1 = bf16_pair(weights[2], weights[3]);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    state.sums[i][0] *= keep_low;
    state.sums[i][1] *= keep_high;
    state.sums[i][2] *= keep_low;
    state.sums[i][3] *= keep_high;
    uint32_t a[4];
    value_operand<kKvF8>(tile, i, a);
    mma_bf16(state.sums[i], a, b0, b1);
  }
}

/// A warp's attention into shared memory.
template <bool kKvF8>
__device__ void leave_partial(const WarpAttention& state, int group, AttentionShared& shared) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int g = lane / 4;
  float total = state.weight_sum;
  total += __shfl_xor_sync(0xFFFFFFFFU, total, 1);
  total += __shfl_xor_sync(0xFFFFFFFFU, total, 2);
  if (lane % 4 == 0 && g < group) {
    shared.partials[g][warp].maximum = state.maximum;
    shared.partials[g][warp].weight_sum = total;
  }
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int head = lane % 4 * 2 + odd;
    if (head >= group) continue;
    float* sums = shared.partials[head][warp].sums;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto* to = reinterpret_cast<float4*>(sums + (kKvF8 ? 16 * g + 8 * half : 64 * half + 8 * g));
      const int i = 4 * half;
      to[0] = {state.sums[i][odd], state.sums[i][2 + odd], state.sums[i + 1][odd],
               state.sums[i + 1][2 + odd]};
      to[1] = {state.sums[i + 2][odd], state.sums[i + 2][2 + odd], state.sums[i + 3][odd],
               state.sums[i + 3][2 + odd]};
    }
  }
}

/// The block's warps become one partial result per query head, published for the next phase.
__device__ void publish_partials(const Block& block, const AttentionUnit& unit,
                                 const AttentionShared& shared, Exchange& exchange) {
  const DecodeArguments& a = block.a;
  const int group = a.num_heads / a.num_kv_heads;
  const int dim = static_cast<int>(threadIdx.x) % kDecodeHeadDim;
  const int tiles = (unit.last_token - unit.first_token + kTileTokens - 1) / kTileTokens;
  const int active = min(tiles, kStreamWarps);
#pragma unroll 1
  for (int head = static_cast<int>(threadIdx.x) / kDecodeHeadDim; head < group;
       head += kStreamThreads / kDecodeHeadDim) {
    const Partial* parts = shared.partials[head];
    float maximum = -INFINITY;
#pragma unroll 4
    for (int i = 0; i < active; ++i) maximum = fmaxf(maximum, parts[i].maximum);
    float sum = 0;
    float weight_sum = 0;
#pragma unroll 4
    for (int i = 0; i < active; ++i) {
      const float keep = exp2f(parts[i].maximum - maximum);
      weight_sum += keep * parts[i].weight_sum;
      sum += keep * parts[i].sums[dim];
    }
    uint32_t* out = partial_of(block, exchange, unit.row, unit.kv_head * group + head, unit.split);
    publish(out + dim, __float_as_uint(sum));
    if (dim == 0) publish(out + kDecodeHeadDim, maximum, weight_sum);
  }
}

/// What a block can load of its first unit before the barrier: everything but the new token's
/// projections.
template <bool kKvF8>
struct AttentionStart {
  HeadConstants constants;
  KvTile<kKvF8> tile;

  __device__ AttentionStart() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      forget(constants.norm[i]);
      forget(i < 2 ? constants.cosines[i] : constants.sines[i - 2]);
      forget(tile.key_scales[i]);
      forget(tile.value_scales[i]);
#pragma unroll
      for (int piece = 0; piece < KvTile<kKvF8>::kValuePieces; ++piece) {
        forget(tile.values[i][piece]);
      }
#pragma unroll
      for (int piece = 0; piece < KvTile<kKvF8>::kKeyPieces; ++piece) {
        if (i < 2) forget(tile.keys[i][piece]);
      }
    }
  }
};

template <bool kKvF8>
__device__ void begin_attention(const Block& block, const DecodeLayer& layer,
                                const AttentionUnit& unit, AttentionStart<kKvF8>& start) {
  const DecodeArguments& a = block.a;
  if (unit.first_token >= unit.last_token) return;
  const int warp = threadIdx.x / 32;
  const int group = a.num_heads / a.num_kv_heads;
  if (warp <= group) {
    start.constants = load_head_constants(a, warp < group ? layer.q_norm : layer.k_norm, unit.row);
  }
  load_tile<kKvF8>(a, layer, unit, tile_begin(unit, 0), start.tile);
}

template <bool kKvF8>
__device__ void attention(const Block& block, const DecodeLayer& layer,
                          AttentionStart<kKvF8>& start, Exchange& exchange) {
  const DecodeArguments& a = block.a;
  auto& shared = *reinterpret_cast<AttentionShared*>(block.staged);
  const int units = a.rows * a.num_kv_heads * block.tail->max_splits;
  const int group = a.num_heads / a.num_kv_heads;
  AttentionUnit unit = block.tail->unit;
#pragma unroll 1
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    if (index != static_cast<int>(blockIdx.x)) {
      unit = attention_unit(block, index);
      begin_attention<kKvF8>(block, layer, unit, start);
    }
    if (unit.first_token >= unit.last_token) continue;
    prepare_heads<kKvF8>(block, layer, unit, start.constants, shared);
    __syncthreads();
    const bool owns_newest = unit.last_token == unit.context;
    WarpAttention state;
#pragma unroll 1
    for (int round = 0;; ++round) {
      const int begin = tile_begin(unit, round);
      if (begin >= unit.last_token) break;
      KvTile<kKvF8> tile = start.tile;
      load_tile<kKvF8>(a, layer, unit, begin + kTokensPerRound, start.tile);
      if (owns_newest) patch_tile<kKvF8>(shared, unit.context - 1 - begin, tile);
      attend_tile<kKvF8>(tile, shared, group, unit.last_token - begin, state);
    }
    if (tile_begin(unit, 0) < unit.last_token) leave_partial<kKvF8>(state, group, shared);
    __syncthreads();
    publish_partials(block, unit, shared, exchange);
    if (index + static_cast<int>(gridDim.x) < units) __syncthreads();
  }
}

/// What stage_heads() has asked for of one head: lane (i) has four dimensions of kAtOnce splits
/// and the statistics of split i.
template <int kAtOnce>
struct HeadParts {
  const uint32_t* parts;
  int splits;
  uint4 sums[kAtOnce] = {};
  uint2 statistics = {1, 1};

  __device__ HeadParts(const uint32_t* from, int count) : parts(from), splits(count) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < splits) sums[i] = peek4(split(i) + lane * 4);
    }
    if (lane < splits) statistics = peek2(split(lane) + kDecodeHeadDim);
  }

  __device__ const uint32_t* split(int i) const {
    return parts + i * (sizeof(Partial) / 4);
  }

  /// The attention's result in this lane's dimensions.
  __device__ void add_up(float (&sum)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float2 weight{-INFINITY, 0};  // largest score and sum of weights
    if (lane < splits) {
      const uint2 bits = collect(split(lane) + kDecodeHeadDim, statistics);
      weight = {__uint_as_float(bits.x), __uint_as_float(bits.y)};
    }
    __syncwarp();
    if (splits == 0) return;
    float factor = exp2f(weight.x - warp_max(weight.x));
    factor = __fdividef(factor, warp_sum(weight.y * factor));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < splits) accumulate(i, sums[i], factor, sum);
    }
#pragma unroll 1
    for (int i = kAtOnce; i < splits; ++i) {
      accumulate(i, peek4(split(i) + lane * 4), factor, sum);
    }
  }

 private:
  __device__ void accumulate(int i, uint4 words, float factor, float (&sum)[4]) const {
    const float4 part = collect(split(i) + static_cast<int>(threadIdx.x) % 32 * 4, words);
    const float f = __shfl_sync(0xFFFFFFFFU, factor, i);
    sum[0] += part.x * f;
    sum[1] += part.y * f;
    sum[2] += part.z * f;
    sum[3] += part.w * f;
  }
};

/// The splits of every head added up in order, staged as the output projection's activations. A
/// warp takes a head or two at once.
template <typename W, bool kTwo, int kAtOnce>
__device__ void stage_heads(const Block& block, Exchange& exchange, int first_head, int heads,
                            const Staged& staged) {
  const DecodeArguments& a = block.a;
  const Divisor per_row = Divisor::of(heads);
  const int total = a.rows * heads;
#pragma unroll 1
  for (int base = static_cast<int>(threadIdx.x) / 32; base < total;
       base += (kTwo ? 2 : 1) * kStreamWarps) {
    const auto parts_of = [&](int i) {
      const int item = min(base + i * kStreamWarps, total - 1);
      const int row = per_row.divide(item);
      return HeadParts<kAtOnce>(
          partial_of(block, exchange, row, first_head + item - row * heads, 0),
          splits_of(block.tail->context[row], block.tail->max_splits));
    };
    const auto put = [&](HeadParts<kAtOnce>& parts, int i) {
      const int item = base + i * kStreamWarps;
      if (item >= total) return;
      const int row = per_row.divide(item);
      float sum[4] = {0, 0, 0, 0};
      parts.add_up(sum);
      put_staged<W>(staged, row, item - row * heads, sum);
    };
    HeadParts<kAtOnce> parts = parts_of(0);
    if constexpr (kTwo) {
      HeadParts<kAtOnce> others = parts_of(1);
      put(parts, 0);
      put(others, 1);
    } else {
      put(parts, 0);
    }
  }
}

// ---- the step -----------------------------------------------------------------------------------

/// One layer's pointers into shared memory, where they cost no trip to L2 when needed.
__device__ void fetch_layer(BlockTail& tail, const DecodeLayers& all, int index) {
  constexpr int kWords = sizeof(DecodeLayer) / sizeof(uint64_t);
  if (threadIdx.x < kWords && index < tail.arguments.num_layers) {
    reinterpret_cast<uint64_t*>(&tail.layers[index % 2])[threadIdx.x] =
        reinterpret_cast<const uint64_t*>(&all.layers[index])[threadIdx.x];
  }
}

/// Takes back what this block published through `exchange`.
__device__ void take_back_all(const Block& block, Exchange& exchange) {
  const DecodeArguments& a = block.a;
  const int thread = static_cast<int>(threadIdx.x);
  const TileRows& hidden = block.tail->shapes[static_cast<int>(DecodeProduct::down)].rows;
  const TileRows& inner = block.tail->shapes[static_cast<int>(DecodeProduct::gate_up)].rows;
#pragma unroll 1
  for (int row = 0; row < a.rows; ++row) {
#pragma unroll 1
    for (int i = hidden.first + thread; i < hidden.last; i += kStreamThreads) {
      take_back(exchange.after_attention + row * a.hidden_size + i);
      take_back(exchange.after_mlp + row * a.hidden_size + i);
    }
#pragma unroll 1
    for (int i = inner.first / 2 + thread; i < inner.last / 2; i += kStreamThreads) {
      take_back(exchange.inner + row * a.intermediate_size / 2 + i);
    }
  }
  const int units = a.rows * a.num_kv_heads * block.tail->max_splits;
  const int group = a.num_heads / a.num_kv_heads;
#pragma unroll 1
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    const int split = index % block.tail->max_splits;
    const int first_head = index / block.tail->max_splits * group;
#pragma unroll 1
    for (int i = thread; i < group * kDecodeHeadDim; i += kStreamThreads) {
      const int head = first_head + i / kDecodeHeadDim;
      const int dim = i % kDecodeHeadDim;
      uint32_t* words = exchange.partials[head * block.tail->max_splits + split];
      take_back(words + dim);
      if (dim < kPartialWords - kDecodeHeadDim) take_back(words + kDecodeHeadDim + dim);
    }
  }
}

/// The activations of a product; `index` is its layer.
template <typename W, bool kMany>
__device__ void stage(const Block& block, const DecodeLayer& layer, int index,
                      DecodeProduct product, int first_column, int count, const Staged& staged) {
  Exchange& exchange = block.workspace->exchanges[index % 2];
  if (product == DecodeProduct::o) {
    stage_heads<W, kMany, 8>(block, exchange, first_column / kDecodeHeadDim, count / kDecodeHeadDim,
                             staged);
  } else if (product == DecodeProduct::down) {
    stage_inner<W, kMany>(block, exchange.inner, first_column, count, staged);
  } else {
    const bool first = product == DecodeProduct::qkv;
    const uint32_t* stream =
        first ? block.workspace->exchanges[(index + 1) % 2].after_mlp : exchange.after_attention;
    stage_norm<W, kMany>(block, first && index == 0 ? nullptr : stream,
                         first ? layer.input_layernorm : layer.post_attention_layernorm, staged);
  }
}

/// Where a product's sums of outputs `output` and the next go. Each element of the residual stream
/// has one owner, so its sum has one order.
__device__ void store_sums(const Block& block, int index, DecodeProduct product, bool is_complete,
                           int output, int row, float2 lower, float2 upper) {
  const DecodeArguments& a = block.a;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  Exchange& exchange = block.workspace->exchanges[index % 2];
  if (product == DecodeProduct::qkv) {
    const float factor = block.tail->norm_factors[row];
    static_cast<uint32_t*>(a.qkv)[(row * shape.outputs + output) / 2] =
        bf16_pair(lower.x * factor, lower.y * factor);
  } else if (product == DecodeProduct::gate_up) {
    const float factor = block.tail->norm_factors[row];
    publish(exchange.inner + (row * shape.outputs + output) / 2,
            bf16_pair(silu(lower.x * factor) * (upper.x * factor),
                      silu(lower.y * factor) * (upper.y * factor)));
  } else {
    auto* residual = reinterpret_cast<float2*>(
        block.residual + row * (shape.rows.last - shape.rows.first) + output - shape.rows.first);
    const float2 before = *residual;
    const float2 sum{before.x + lower.x, before.y + lower.y};
    *residual = sum;
    if (!is_complete) return;
    const int at = row * shape.outputs + output;
    if (product == DecodeProduct::o) {
      publish(exchange.after_attention + at, sum.x, sum.y);
    } else if (index + 1 < a.num_layers) {
      publish(exchange.after_mlp + at, sum.x, sum.y);
    } else {
      *reinterpret_cast<float2*>(a.hidden + at) = sum;
    }
  }
}

template <typename W>
__device__ void add_up_pass(const Block& block, const Product<W>& weights, int index,
                            const LastPass& pass, bool is_complete) {
  add_up(*pass.plan, weights.shape.rows, weights.is_paired(), pass.first_tile, block.a.rows,
         block.scratch->slots, [&](int output, int row, float2 lower, float2 upper) {
           store_sums(block, index, weights.product, is_complete, output, row, lower, upper);
         });
  __syncwarp();
}

/// Stages the activations of a product and multiplies them; what is left to do is add_up_pass() of
/// the last pass, usually the only one.
template <bool kMany, typename W>
__device__ LastPass multiply_product(const Block& block, WeightStream<W, kStages>& stream,
                                     const Product<W>& weights, int index) {
  const ProductShape& shape = weights.shape;
  LastPass pass{&shape.pass, 0};
  if (shape.rows.tiles == 0) return pass;
  int first_column = 0;
  bool is_staged = false;
#pragma unroll 1
  for (;;) {
    const int count = min(shape.chunk_columns, shape.columns - first_column);
    const Staged staged = block.stage_of(staged_stride<W>(count));
    if (!is_staged) {
      stage<W, kMany>(block, weights.layer, index, weights.product, first_column, count, staged);
      __syncthreads();
      if (weights.product == DecodeProduct::qkv || weights.is_paired()) find_norm_factors(block);
      is_staged = true;
    }
    int first_tile = pass.first_tile;
    const auto locate = [&](int tile) { return weights.locate(first_tile + tile, first_column); };
    stream.multiply(*pass.plan, staged, block.a.rows, block.scratch->slots, locate);
    const bool is_last_chunk = first_column + count >= shape.columns;
    first_tile += kTilesPerPass;
    if (first_tile >= shape.rows.tiles) {
      if (is_last_chunk) return pass;
      first_tile = 0;
      first_column += count;
      is_staged = false;
    }
    __syncthreads();
    add_up_pass(block, weights, index, pass, is_last_chunk);
    __syncthreads();
    if (threadIdx.x == 0) {
      const int next = min(shape.chunk_columns, shape.columns - first_column);
      block.tail->pass = PassPlan::make(shape.rows.tiles - first_tile,
                                        next * static_cast<int>(sizeof(W)), kStreamWarps);
    }
    __syncthreads();
    pass = {&block.tail->pass, first_tile};
    stream.begin(*pass.plan, locate);
  }
}

/// From a finished qkv product to published attention. A function of its own, not inlined: its
/// tiles and the stream's weights, which are not alive together, would crowd each other out of the
/// registers.
template <typename W, bool kKvF8>
__device__ __noinline__ void attend_layer(int index) {
  const Block block = this_block();
  const Product<W> weights(block, block.tail->layers[index % 2], DecodeProduct::qkv);
  __syncthreads();
  add_up_pass(block, weights, index, block.tail->last_pass, true);
  arrive(block);
  AttentionStart<kKvF8> start;
  begin_attention<kKvF8>(block, weights.layer, block.tail->unit, start);
  wait(block, index + 1);
  attention<kKvF8>(block, weights.layer, start, block.workspace->exchanges[index % 2]);
}

/// What each block works out once.
template <typename W>
__device__ void prepare_block(const Block& block) {
  const DecodeArguments& a = block.a;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < a.rows) block.tail->context[thread] = a.context_length[thread];
  if (thread < kDecodeProducts) {
    block.tail->shapes[thread] = product_shape<W>(a, static_cast<DecodeProduct>(thread));
  }
  if (thread == 0) {
    block.tail->max_splits =
        max(1, min(kDecodeMaxSplits, static_cast<int>(gridDim.x) / (a.rows * a.num_kv_heads)));
  }
  __syncthreads();
  if (thread == 0) block.tail->unit = attention_unit(block, blockIdx.x);
  const TileRows& rows = block.tail->shapes[static_cast<int>(DecodeProduct::down)].rows;
  const int width = rows.last - rows.first;
  for (int row = 0; row < a.rows; ++row) {
#pragma unroll 1
    for (int i = thread; i < width; i += kStreamThreads) {
      block.residual[row * width + i] = __ldcg(a.hidden + row * a.hidden_size + rows.first + i);
    }
  }
#pragma unroll 1
  for (int i = 0; i < 2; ++i) take_back_all(block, block.workspace->exchanges[i]);
}

// All products of all layers run through one copy of the code: fetching instructions costs as much
// as running them here. `kMany` asks for more rows' activations at once, which pays from some rows
// on; for one row the shorter code is 6 % quicker.
template <typename W, bool kKvF8, bool kMany>
__global__ void __launch_bounds__(kStreamThreads, 1)
    decode_all_layers(const __grid_constant__ DecodeArguments a,
                      const __grid_constant__ DecodeLayers layers) {
  if (threadIdx.x == 0) tail_of_block().arguments = a;
  __syncthreads();
  const Block block = this_block();
  fetch_layer(*block.tail, layers, 0);
  prepare_block<W>(block);
  WeightStream<W, kStages> stream;
  const int steps = a.num_layers * kDecodeProducts;
  // One step earlier there is nothing to multiply: this way everything stands here once.
#pragma unroll 1
  for (int step = -1;; ++step) {
    const int index = max(step, 0) / kDecodeProducts;
    const auto product = static_cast<DecodeProduct>(max(step, 0) % kDecodeProducts);
    const Product<W> weights(block, block.tail->layers[index % 2], product);
    const bool attends = step >= 0 && product == DecodeProduct::qkv;
    LastPass pass{&weights.shape.pass, 0};
    if (step >= 0) {
      if (attends) fetch_layer(*block.tail, layers, index + 1);
      pass = multiply_product<kMany>(block, stream, weights, index);
    }
    if (attends) {
      if (threadIdx.x == 0) block.tail->last_pass = pass;
      attend_layer<W, kKvF8>(index);
    }
    __syncthreads();  // sums wait in the slots, or the attention's shared memory changes hands
    if (!attends && step >= 0) add_up_pass(block, weights, index, pass, true);
    if (step + 1 == steps) break;
    const int next_index = (step + 1) / kDecodeProducts;
    const Product<W> next(block, block.tail->layers[next_index % 2],
                          static_cast<DecodeProduct>((step + 1) % kDecodeProducts));
    stream.begin(next.shape.pass, [&](int tile) { return next.locate(tile, 0); });
    if (attends && index > 0) take_back_all(block, block.workspace->exchanges[(index + 1) % 2]);
  }
  // The last block to leave makes the workspace ready for the next step.
  __syncthreads();
  if (threadIdx.x == 0) {
    if (atomicAdd(&block.workspace->finished, 1U) + 1 == gridDim.x) {
      block.workspace->barrier = 0;
      block.workspace->finished = 0;
    }
  }
}

using Kernel = void (*)(DecodeArguments, DecodeLayers);

template <bool kMany>
Kernel kernel_of(bool weight_is_f8, bool kv_is_f8) {
  if (weight_is_f8) {
    return kv_is_f8 ? decode_all_layers<Fp8, true, kMany> : decode_all_layers<Fp8, false, kMany>;
  }
  return kv_is_f8 ? decode_all_layers<Bf16, true, kMany> : decode_all_layers<Bf16, false, kMany>;
}

Kernel kernel_of(const DecodeArguments& a) {
  return a.rows > 2 ? kernel_of<true>(a.weight_is_f8, a.kv_is_f8)
                    : kernel_of<false>(a.weight_is_f8, a.kv_is_f8);
}

/// More blocks than the exchange has room for stay idle.
int decode_blocks(int num_multiprocessors) {
  return num_multiprocessors < kMaxBlocks ? num_multiprocessors : kMaxBlocks;
}

}  // namespace

bool decode_supports(const DecodeArguments& a, int num_multiprocessors) {
  const int alignment = a.weight_is_f8 ? kUnitColumns<Fp8> : kUnitColumns<Bf16>;
  const int group = a.num_kv_heads > 0 ? a.num_heads / a.num_kv_heads : 0;
  if (a.rows < 1 || a.rows > kDecodeRows || a.num_layers < 1 || a.num_layers > kDecodeMaxLayers ||
      a.num_kv_heads < 1 || a.num_heads > kDecodeMaxHeads || a.num_heads % a.num_kv_heads != 0 ||
      (group != 1 && group != 2 && group != 4) || a.hidden_size % alignment != 0 ||
      a.intermediate_size % alignment != 0 || a.hidden_size > kMaxHidden ||
      a.intermediate_size > kMaxIntermediate) {
    return false;
  }
  // A norm's row is staged whole; a block keeps its part of the residual stream.
  const int blocks = decode_blocks(num_multiprocessors);
  const int hidden_of_block = 2 * ((a.hidden_size / 2 + blocks - 1) / blocks);
  return (a.hidden_size + 32 + kBlockColumns) * 2 * a.rows <= kStagedBytes &&
         a.hidden_size <= kMaxChunkBlocks * kBlockColumns &&
         a.rows * hidden_of_block <= kResidualFloats;
}

int64_t decode_workspace_bytes() {
  return static_cast<int64_t>(sizeof(Workspace));
}

cudaError_t prepare_decode() {
  for (const bool weight_is_f8 : {false, true}) {
    for (const bool kv_is_f8 : {false, true}) {
      for (const Kernel kernel :
           {kernel_of<false>(weight_is_f8, kv_is_f8), kernel_of<true>(weight_is_f8, kv_is_f8)}) {
        const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
        if (error != cudaSuccess) return error;
      }
    }
  }
  return cudaSuccess;
}

cudaError_t launch_decode(const DecodeArguments& arguments, const DecodeLayers& layers,
                          int num_multiprocessors, cudaStream_t stream) {
  // The runtime takes arguments by address and copies them.
  void* parameters[] = {const_cast<DecodeArguments*>(&arguments),
                        const_cast<DecodeLayers*>(&layers)};
  return cudaLaunchCooperativeKernel(
      reinterpret_cast<const void*>(kernel_of(arguments)),
      dim3(static_cast<unsigned>(decode_blocks(num_multiprocessors))), dim3(kStreamThreads),
      parameters, kSharedBytes, stream);
}

}  // namespace glimpse::cuda
