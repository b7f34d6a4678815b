// One block per multiprocessor, all resident, meeting at grid barriers: five per layer.
//
//   norm + qkv | q/k norm, rotary, KV store, attention | o_proj + residual | norm + gate, up, SiLU
//   | down_proj + residual
//
// Each product streams its matrix once (weight_stream.cuh). Between arriving at a barrier and
// passing it, a block starts its first weight loads of the next product and asks L2 for the rest of
// its share: weights depend on nothing, so the memory stays busy while the blocks wait.
// Bytes moved per step: every weight, and the keys and values of each sequence, once.
#include "cuda/decode_layers.h"

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kPageTokens = 32;
constexpr int kHalf = kDecodeHeadDim / 2;
constexpr int kMaxGroup = 4;  // query heads per kv head
// 99 KiB per block on every card: sums of a pass 16 KiB, the rest for activations.
constexpr int kSharedBytes = 98 * 1024;
constexpr int kStagedBytes = kSharedBytes - static_cast<int>(sizeof(StreamScratch)) - 1024;
// Keys that are worth a block of their own: fewer pieces are quicker to add up.
constexpr int kTokensPerSplit = 64;
// Keys that a block looks at together: half a warp each.
constexpr int kTokensPerRound = 2 * kStreamWarps;
// About two seconds: a block that waits longer means that the grid is not whole.
constexpr long long kBarrierLimit = 4'000'000'000LL;

using Bf16 = __nv_bfloat16;

/// Attention of one query head over one split: sums of values, the largest score and the sum of
/// weights relative to it.
struct Partial {
  float sums[kDecodeHeadDim];
  float maximum;
  float weight_sum;
  float padding[2];  // keeps `sums` 16-byte aligned
};

/// Device memory behind DecodeArguments::workspace.
struct Workspace {
  unsigned int barrier;
  unsigned int finished;
  unsigned int padding[2];
  Partial partials[1];  // [rows, heads, kDecodeMaxSplits]
};

/// What stays the same of a product from layer to layer; worked out once per launch.
struct ProductShape {
  int outputs, columns;
  int rows_per_tile;          // 16; 8 where gate and up rows share a tile
  int first_tile, last_tile;  // this block's
  int chunk_columns;          // that shared memory holds at once, whole units
};

/// The end of a block's shared memory.
struct BlockTail {
  float reduction[kStreamWarps];
  DecodeLayer layers[2];  // this layer's pointers and the next one's
  ProductShape shapes[kDecodeProducts];
  int context[kDecodeRows];
};
static_assert(sizeof(BlockTail) <= 1024);

struct Block {
  const DecodeArguments& a;
  const DecodeLayers& all;
  Workspace* workspace;
  StreamScratch* scratch;
  Bf16* staged;  // kStagedBytes
  BlockTail* tail;
  unsigned int barriers_passed = 0;
};

__device__ inline float silu(float x) {
  return x / (1.0F + __expf(-x));
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

__device__ inline void arrive(Block& block) {
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(&block.workspace->barrier)
                 : "memory");
  }
  ++block.barriers_passed;
}

__device__ inline void wait(Block& block) {
  if (threadIdx.x == 0) {
    const unsigned int target = block.barriers_passed * gridDim.x;
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

template <typename W>
__device__ ProductShape product_shape(const DecodeArguments& a, DecodeProduct product) {
  ProductShape shape;
  const int attended = a.num_heads * kDecodeHeadDim;
  shape.outputs = product == DecodeProduct::qkv ? attended + 2 * a.num_kv_heads * kDecodeHeadDim
                  : product == DecodeProduct::gate_up ? a.intermediate_size
                                                      : a.hidden_size;
  shape.columns = product == DecodeProduct::o      ? attended
                  : product == DecodeProduct::down ? a.intermediate_size
                                                   : a.hidden_size;
  shape.rows_per_tile = product == DecodeProduct::gate_up ? 8 : kTileRows;
  const int tiles = (shape.outputs + shape.rows_per_tile - 1) / shape.rows_per_tile;
  shape.first_tile = share_begin(tiles, blockIdx.x, gridDim.x);
  shape.last_tile = share_begin(tiles, blockIdx.x + 1, gridDim.x);
  constexpr int kUnit = kUnitColumns<W>;
  const int fit = (kStagedBytes / (a.rows * 2) - 8) / kUnit * kUnit;
  shape.chunk_columns = min(fit, (shape.columns + kUnit - 1) / kUnit * kUnit);
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
  __device__ int64_t row_bytes() const { return int64_t{shape.columns} * sizeof(W); }
  __device__ const uint8_t* lower() const {
    return static_cast<const uint8_t*>(layer.weights[static_cast<int>(product)]);
  }
  __device__ const uint8_t* upper() const {
    return is_paired() ? static_cast<const uint8_t*>(layer.up) : lower();
  }

  __device__ TileRows locate(int tile, int first_column) const {
    const int row = tile * shape.rows_per_tile;
    const int upper_row = is_paired() ? row : min(row + 8, shape.outputs - 1);
    const int scale_columns = (shape.columns + 127) / 128;
    const int64_t offset = first_column * static_cast<int>(sizeof(W));
    const float* scales = layer.scales[static_cast<int>(product)];
    TileRows rows;
    rows.lower = lower() + row * row_bytes() + offset;
    rows.upper = upper() + upper_row * row_bytes() + offset;
    rows.lower_scales = scales + row / 128 * scale_columns + first_column / 128;
    rows.upper_scales = (is_paired() ? layer.up_scales : scales) + upper_row / 128 * scale_columns +
                        first_column / 128;
    rows.lower_rows = min(8, shape.outputs - row);
    rows.upper_rows = min(8, shape.outputs - upper_row);
    return rows;
  }

  /// The loads that can start before the barrier is passed: this block's first units.
  __device__ void load_first(UnitRegisters& registers) const {
    const TileStream<W> stream(shape.columns, min(shape.chunk_columns, shape.columns));
    stream.load_first(
        shape.first_tile, shape.last_tile, [&](int tile) { return locate(tile, 0); }, registers);
  }

  /// And of its share, up to `num_bytes` brought into the L2 cache.
  __device__ void prefetch(int64_t num_bytes) const {
    if (num_bytes == 0) return;
    const int first_row = shape.first_tile * shape.rows_per_tile;
    const int last_row = min(shape.last_tile * shape.rows_per_tile, shape.outputs);
    const int64_t share = (last_row - first_row) * row_bytes();
    prefetch_to_l2(lower() + first_row * row_bytes(), min(share, num_bytes));
    if (is_paired()) prefetch_to_l2(upper() + first_row * row_bytes(), min(share, num_bytes));
  }
};

/// Copies bf16 rows into shared memory in the order that the stream reads them.
template <typename W>
__device__ void stage_copy(const Block& block, const Bf16* source, int source_stride, int first,
                           int count, int stride) {
  const int per_row = (stride - 8) / 4;
  const int total = block.a.rows * per_row;
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (int base = threadIdx.x; base < total; base += kAtOnce * kStreamThreads) {
    uint2 words[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamThreads;
      const int row = item / per_row;
      const int column = (item - row * per_row) * 4;
      words[i] = {0, 0};
      if (item < total && column < count) {
        words[i] = __ldcg(
            reinterpret_cast<const uint2*>(source + int64_t{row} * source_stride + first + column));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamThreads;
      if (item >= total) continue;
      const int row = item / per_row;
      const auto* parts = reinterpret_cast<const Bf16*>(&words[i]);
      const Bf16 four[4] = {parts[0], parts[1], parts[2], parts[3]};
      store_staged<W>(block.staged + row * stride, (item - row * per_row) * 4, four);
    }
  }
}

/// rms_norm of the residual stream, staged. Several warps share a row.
template <typename W>
__device__ void stage_norm(const Block& block, const float* weight, int stride) {
  const DecodeArguments& a = block.a;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int warps_per_row = a.rows > 4 ? 2 : a.rows > 2 ? 4 : a.rows > 1 ? 8 : 16;
  const int row = min(warp / warps_per_row, a.rows - 1);
  const bool is_mine = warp / warps_per_row < a.rows;
  const int step = warps_per_row * 32 * 4;
  const int first = (warp % warps_per_row * 32 + lane) * 4;
  const float* x = a.hidden + int64_t{row} * a.hidden_size;
  // What fits stays in registers between the two passes.
  constexpr int kKept = 2;
  float4 kept[kKept];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int column = first + i * step;
    kept[i] = column < a.hidden_size ? __ldcg(reinterpret_cast<const float4*>(x + column))
                                     : float4{0, 0, 0, 0};
  }
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    sum += kept[i].x * kept[i].x + kept[i].y * kept[i].y + kept[i].z * kept[i].z +
           kept[i].w * kept[i].w;
  }
#pragma unroll 4
  for (int column = first + kKept * step; column < a.hidden_size; column += step) {
    const float4 v = __ldcg(reinterpret_cast<const float4*>(x + column));
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  sum = warp_sum(sum);
  if (lane == 0) block.tail->reduction[warp] = sum;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < warps_per_row; ++i) total += block.tail->reduction[row * warps_per_row + i];
  const float factor = rsqrtf(total / static_cast<float>(a.hidden_size) + a.epsilon);
  if (!is_mine) return;
  const auto put = [&](int column, float4 v) {
    if (column >= stride - 8) return;
    float4 w{0, 0, 0, 0};
    if (column < a.hidden_size) w = __ldg(reinterpret_cast<const float4*>(weight + column));
    const Bf16 four[4] = {v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z,
                          v.w * factor * w.w};
    store_staged<W>(block.staged + row * stride, column, four);
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) put(first + i * step, kept[i]);
#pragma unroll 4
  for (int column = first + kKept * step; column < stride - 8; column += step) {
    put(column, column < a.hidden_size ? __ldcg(reinterpret_cast<const float4*>(x + column))
                                       : float4{0, 0, 0, 0});
  }
}

// ---- attention ------------------------------------------------------------------------------

/// One kv head of one sequence over a run of its keys: a block's work.
struct AttentionUnit {
  int row, kv_head, split;
  int context;
  int first_token, last_token;  // empty for splits that a short context does not need
};

__device__ inline int splits_of(int context, int max_splits) {
  return max(1, min(max_splits, (context + kTokensPerSplit - 1) / kTokensPerSplit));
}

__device__ inline int max_splits_of(const DecodeArguments& a) {
  return max(1, min(kDecodeMaxSplits, static_cast<int>(gridDim.x) / (a.rows * a.num_kv_heads)));
}

__device__ inline AttentionUnit attention_unit(const Block& block, int index) {
  const DecodeArguments& a = block.a;
  const int max_splits = max_splits_of(a);
  AttentionUnit unit;
  unit.split = index % max_splits;
  unit.kv_head = index / max_splits % a.num_kv_heads;
  unit.row = index / max_splits / a.num_kv_heads;
  unit.context = block.tail->context[unit.row];
  const int splits = splits_of(unit.context, max_splits);
  const bool used = unit.split < splits;
  unit.first_token = used ? share_begin(unit.context, unit.split, splits) : 0;
  unit.last_token = used ? share_begin(unit.context, unit.split + 1, splits) : 0;
  return unit;
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

template <bool kKvF8>
__device__ inline void store_head(const HeadLane& head, void* cache, float* scales, int64_t entry) {
  const int lane = threadIdx.x % 32;
  if constexpr (kKvF8) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(head.x[i]));
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, offset));
    }
    const float scale = largest > 0 ? largest / 448.0F : 1.0F;
    if (lane == 0) scales[entry] = scale;
    auto* to = static_cast<uint8_t*>(cache) + entry * kDecodeHeadDim;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[lane + 32 * i] = __nv_cvt_float_to_fp8(head.x[i] / scale, __NV_SATFINITE, __NV_E4M3);
    }
  } else {
    auto* to = static_cast<Bf16*>(cache) + entry * kDecodeHeadDim;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[lane + 32 * i] = __float2bfloat16(head.x[i]);
  }
}

/// Eight dimensions of a token's key and value as stored; half a warp holds a whole token.
struct TokenLane {
  uint4 key, value;  // bf16: all four words; e4m3: the first two
  float key_scale, value_scale;
};

__device__ inline int64_t token_entry(const DecodeArguments& a, const AttentionUnit& unit,
                                      int token) {
  const int page = a.page_table[int64_t{unit.row} * a.max_pages + token / kPageTokens];
  return (int64_t{page} * a.num_kv_heads + unit.kv_head) * kPageTokens + token % kPageTokens;
}

template <bool kKvF8>
__device__ inline TokenLane load_token(const DecodeArguments& a, const DecodeLayer& layer,
                                       const AttentionUnit& unit, int token) {
  const int64_t entry = token_entry(a, unit, min(token, unit.last_token - 1));
  const int piece = threadIdx.x % 16;
  TokenLane lane{};
  if constexpr (kKvF8) {
    const int64_t at = entry * kDecodeHeadDim + piece * 8;
    const uint2 key = *reinterpret_cast<const uint2*>(static_cast<const uint8_t*>(layer.keys) + at);
    const uint2 value =
        *reinterpret_cast<const uint2*>(static_cast<const uint8_t*>(layer.values) + at);
    lane.key = {key.x, key.y, 0, 0};
    lane.value = {value.x, value.y, 0, 0};
    lane.key_scale = layer.key_scales[entry];
    lane.value_scale = layer.value_scales[entry];
  } else {
    const int64_t at = entry * kDecodeHeadDim + piece * 8;
    lane.key = *reinterpret_cast<const uint4*>(static_cast<const Bf16*>(layer.keys) + at);
    lane.value = *reinterpret_cast<const uint4*>(static_cast<const Bf16*>(layer.values) + at);
  }
  return lane;
}

template <bool kKvF8>
__device__ inline void unpack(const uint4& words, float scale, float (&out)[8]) {
  if constexpr (kKvF8) {
    const uint32_t pairs[4] = {bf16_pair_of_e4m3(words.x << 8), bf16_pair_of_e4m3(words.x),
                               bf16_pair_of_e4m3(words.y << 8), bf16_pair_of_e4m3(words.y)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[4 * i] = __uint_as_float(pairs[2 * i] << 16) * scale;
      out[4 * i + 2] = __uint_as_float(pairs[2 * i] & 0xFFFF0000U) * scale;
      out[4 * i + 1] = __uint_as_float(pairs[2 * i + 1] << 16) * scale;
      out[4 * i + 3] = __uint_as_float(pairs[2 * i + 1] & 0xFFFF0000U) * scale;
    }
  } else {
    const uint32_t parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __uint_as_float(parts[i] << 16);
      out[2 * i + 1] = __uint_as_float(parts[i] & 0xFFFF0000U);
    }
  }
}

/// Shared memory of the attention phase; lies where products stage their activations.
struct AttentionShared {
  float queries[kMaxGroup][kDecodeHeadDim];
  Partial partials[kMaxGroup][kStreamWarps];
};
static_assert(sizeof(AttentionShared) <= kStagedBytes);

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
    // log2(e) / sqrt(128): the softmax below works in powers of two.
    constexpr float kScale = 1.44269504F * 0.08838834764F;
#pragma unroll
    for (int i = 0; i < 4; ++i) shared.queries[warp][lane + 32 * i] = head.x[i] * kScale;
    return;
  }
  const int slot = a.slots[unit.row];
  if (slot < 0) return;
  const int64_t entry =
      (int64_t{slot / kPageTokens} * a.num_kv_heads + unit.kv_head) * kPageTokens +
      slot % kPageTokens;
  if (warp == group) {
    store_head<kKvF8>(head, layer.keys, layer.key_scales, entry);
  } else {
    store_head<kKvF8>(head, layer.values, layer.value_scales, entry);
  }
}

/// Half a warp per token, eight dimensions per lane, the whole group of query heads at once; the
/// loads of the next tokens are under way while one is computed; `begun` holds the first two.
template <bool kKvF8, int kGroup>
__device__ void attend_tokens(const Block& block, const DecodeLayer& layer,
                              const AttentionUnit& unit, const TokenLane (&begun)[2],
                              AttentionShared& shared) {
  const DecodeArguments& a = block.a;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int piece = lane % 16;
  float sums[kGroup][8] = {};
  float maximum[kGroup];
  float weight_sum[kGroup] = {};
#pragma unroll
  for (int h = 0; h < kGroup; ++h) maximum[h] = -INFINITY;
  int token = unit.first_token + static_cast<int>(threadIdx.x) / 16;
  // The newest token was written a moment ago, after these were loaded.
  constexpr int kAhead = kGroup < 4 ? 2 : 1;  // what the registers allow
  TokenLane next[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    next[i] = begun[i];
    const int mine = token + i * kTokensPerRound;
    if (mine == unit.context - 1) next[i] = load_token<kKvF8>(a, layer, unit, mine);
  }
  // All lanes stay in the loop together: the shuffles need the whole warp.
#pragma unroll 1
  for (int base = unit.first_token; base < unit.last_token;
       base += kTokensPerRound, token += kTokensPerRound) {
    const TokenLane current = next[0];
    next[0] = next[kAhead - 1];
    if (base + kAhead * kTokensPerRound < unit.last_token) {
      next[kAhead - 1] = load_token<kKvF8>(a, layer, unit, token + kAhead * kTokensPerRound);
    }
    float key[8];
    float value[8];
    unpack<kKvF8>(current.key, current.key_scale, key);
    unpack<kKvF8>(current.value, current.value_scale, value);
#pragma unroll
    for (int h = 0; h < kGroup; ++h) {
      const auto* query = reinterpret_cast<const float4*>(&shared.queries[h][piece * 8]);
      const float4 low = query[0];
      const float4 high = query[1];
      float score = low.x * key[0] + low.y * key[1] + low.z * key[2] + low.w * key[3] +
                    high.x * key[4] + high.y * key[5] + high.z * key[6] + high.w * key[7];
#pragma unroll
      for (int offset = 8; offset > 0; offset /= 2) {
        score += __shfl_xor_sync(0xFFFFFFFFU, score, offset);
      }
      if (token >= unit.last_token) continue;
      const float larger = fmaxf(maximum[h], score);
      const float keep = exp2f(maximum[h] - larger);
      const float weight = exp2f(score - larger);
      maximum[h] = larger;
      weight_sum[h] = weight_sum[h] * keep + weight;
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[h][i] = sums[h][i] * keep + weight * value[i];
    }
  }
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {  // the warp's two halves become one
    const float other = __shfl_xor_sync(0xFFFFFFFFU, maximum[h], 16);
    const float larger = fmaxf(maximum[h], other);
    const float keep = maximum[h] == -INFINITY ? 0 : exp2f(maximum[h] - larger);
    const float total = weight_sum[h] * keep;
    const float both_totals = total + __shfl_xor_sync(0xFFFFFFFFU, total, 16);
    Partial& out = shared.partials[h][warp];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float part = sums[h][i] * keep;
      const float both = part + __shfl_xor_sync(0xFFFFFFFFU, part, 16);
      if (lane < 16) out.sums[piece * 8 + i] = both;
    }
    if (lane == 0) {
      out.maximum = larger;
      out.weight_sum = both_totals;
    }
  }
}

/// The block's warps become one partial result per query head, left for the next phase to add up.
__device__ void write_partials(const Block& block, const AttentionUnit& unit,
                               const AttentionShared& shared) {
  const DecodeArguments& a = block.a;
  const int group = a.num_heads / a.num_kv_heads;
  const int head = threadIdx.x / kDecodeHeadDim;
  const int dim = threadIdx.x % kDecodeHeadDim;
  if (head >= group) return;
  const Partial* parts = shared.partials[head];
  float maximum = -INFINITY;
#pragma unroll
  for (int i = 0; i < kStreamWarps; ++i) maximum = fmaxf(maximum, parts[i].maximum);
  float sum = 0;
  float weight_sum = 0;
#pragma unroll
  for (int i = 0; i < kStreamWarps; ++i) {
    const float keep = parts[i].maximum == -INFINITY ? 0 : exp2f(parts[i].maximum - maximum);
    weight_sum += keep * parts[i].weight_sum;
    sum += keep * parts[i].sums[dim];
  }
  Partial& out =
      block.workspace
          ->partials[(unit.row * a.num_heads + unit.kv_head * group + head) * kDecodeMaxSplits +
                     unit.split];
  out.sums[dim] = sum;
  if (dim == 0) {
    out.maximum = maximum;
    out.weight_sum = weight_sum;
  }
}

/// What a block can load of its first unit before the barrier: everything but the new token's
/// projections.
struct AttentionStart {
  AttentionUnit unit;
  HeadConstants constants;
  TokenLane tokens[2];
};

template <bool kKvF8>
__device__ AttentionStart begin_attention(const Block& block, const DecodeLayer& layer, int index) {
  const DecodeArguments& a = block.a;
  AttentionStart start{};
  if (index >= a.rows * a.num_kv_heads * max_splits_of(a)) return start;
  start.unit = attention_unit(block, index);
  if (start.unit.first_token >= start.unit.last_token) return start;
  const int warp = threadIdx.x / 32;
  const int group = a.num_heads / a.num_kv_heads;
  if (warp <= group) {
    start.constants =
        load_head_constants(a, warp < group ? layer.q_norm : layer.k_norm, start.unit.row);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = start.unit.first_token + static_cast<int>(threadIdx.x) / 16;
    start.tokens[i] = load_token<kKvF8>(a, layer, start.unit, token + i * kTokensPerRound);
  }
  return start;
}

template <bool kKvF8>
__device__ void attention(Block& block, const DecodeLayer& layer, AttentionStart start) {
  const DecodeArguments& a = block.a;
  auto& shared = *reinterpret_cast<AttentionShared*>(block.staged);
  const int units = a.rows * a.num_kv_heads * max_splits_of(a);
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    if (index != static_cast<int>(blockIdx.x)) start = begin_attention<kKvF8>(block, layer, index);
    const AttentionUnit unit = start.unit;
    if (unit.first_token >= unit.last_token) continue;
    prepare_heads<kKvF8>(block, layer, unit, start.constants, shared);
    __syncthreads();
    switch (a.num_heads / a.num_kv_heads) {
      case 1:
        attend_tokens<kKvF8, 1>(block, layer, unit, start.tokens, shared);
        break;
      case 2:
        attend_tokens<kKvF8, 2>(block, layer, unit, start.tokens, shared);
        break;
      default:
        attend_tokens<kKvF8, 4>(block, layer, unit, start.tokens, shared);
        break;
    }
    __syncthreads();
    write_partials(block, unit, shared);
    if (index + static_cast<int>(gridDim.x) < units) __syncthreads();
  }
}

/// The splits of every head added up in order, staged as the output projection's activations. A
/// warp takes a head: four dimensions a lane, and lane i works out the weight of split i.
template <typename W>
__device__ void stage_attended(const Block& block, int first, int count, int stride) {
  const DecodeArguments& a = block.a;
  const int max_splits = max_splits_of(a);
  const int lane = threadIdx.x % 32;
  const int heads = (stride - 8 + kDecodeHeadDim - 1) / kDecodeHeadDim;
#pragma unroll 1
  for (int item = threadIdx.x / 32; item < a.rows * heads; item += kStreamWarps) {
    const int row = item / heads;
    const int column = item % heads * kDecodeHeadDim + lane * 4;
    Bf16 four[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    if (item % heads * kDecodeHeadDim < count) {
      const int head = first / kDecodeHeadDim + item % heads;
      const Partial* parts =
          block.workspace->partials + (row * a.num_heads + head) * kDecodeMaxSplits;
      const int splits = splits_of(block.tail->context[row], max_splits);
      float2 weight{-INFINITY, 0};  // largest score and sum of weights of this lane's split
      if (lane < splits) weight = __ldcg(reinterpret_cast<const float2*>(&parts[lane].maximum));
      constexpr int kAtOnce = 4;
      float4 loaded[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (i < splits) loaded[i] = __ldcg(reinterpret_cast<const float4*>(parts[i].sums) + lane);
      }
      const float factor = exp2f(weight.x - warp_max(weight.x));
      const float inverse = 1.0F / warp_sum(weight.y * factor);
      float4 sum{0, 0, 0, 0};
      const auto accumulate = [&](const float4& part, int split) {
        const float f = __shfl_sync(0xFFFFFFFFU, factor, split);
        sum.x += part.x * f;
        sum.y += part.y * f;
        sum.z += part.z * f;
        sum.w += part.w * f;
      };
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (i < splits) accumulate(loaded[i], i);
      }
      for (int i = kAtOnce; i < splits; ++i) {
        accumulate(__ldcg(reinterpret_cast<const float4*>(parts[i].sums) + lane), i);
      }
      four[0] = sum.x * inverse;
      four[1] = sum.y * inverse;
      four[2] = sum.z * inverse;
      four[3] = sum.w * inverse;
    }
    if (column < stride - 8) store_staged<W>(block.staged + row * stride, column, four);
  }
}

// ---- the step -------------------------------------------------------------------------------

/// One layer's pointers into shared memory, where they cost no trip to L2 when needed.
__device__ void fetch_layer(Block& block, int index) {
  constexpr int kWords = sizeof(DecodeLayer) / sizeof(uint64_t);
  if (threadIdx.x < kWords && index < block.a.num_layers) {
    reinterpret_cast<uint64_t*>(&block.tail->layers[index % 2])[threadIdx.x] =
        reinterpret_cast<const uint64_t*>(&block.all.layers[index])[threadIdx.x];
  }
}

template <typename W>
__device__ void stage(const Block& block, const DecodeLayer& layer, DecodeProduct product,
                      int first_column, int count, int stride) {
  const DecodeArguments& a = block.a;
  if (product == DecodeProduct::o) {
    stage_attended<W>(block, first_column, count, stride);
  } else if (product == DecodeProduct::down) {
    stage_copy<W>(block, static_cast<const Bf16*>(a.intermediate), a.intermediate_size,
                  first_column, count, stride);
  } else {
    stage_norm<W>(
        block,
        product == DecodeProduct::qkv ? layer.input_layernorm : layer.post_attention_layernorm,
        stride);
  }
}

/// Where a product's sums go. `low` belongs to `output`; `high` to the eighth row after it or, of
/// gate and up, to the up half. The residual stream is added to: each element has one owner, so its
/// sum has one order, and the reduction waits for no answer.
__device__ void store_sums(const DecodeArguments& a, DecodeProduct product, int outputs, int output,
                           int row, float low, float high) {
  if (product == DecodeProduct::qkv) {
    Bf16* out = static_cast<Bf16*>(a.qkv) + row * outputs + output;
    out[0] = __float2bfloat16(low);
    out[8] = __float2bfloat16(high);
  } else if (product == DecodeProduct::gate_up) {
    if (output >= outputs) return;
    static_cast<Bf16*>(a.intermediate)[row * outputs + output] = __float2bfloat16(silu(low) * high);
  } else {
    float* out = a.hidden + row * outputs + output;
    if (output < outputs) atomicAdd(out, low);
    if (output + 8 < outputs) atomicAdd(out + 8, high);
  }
}

template <typename W>
__device__ void run_product(Block& block, UnitRegisters& registers, const DecodeLayer& layer,
                            DecodeProduct product) {
  const Product<W> weights(block, layer, product);
  const ProductShape& shape = weights.shape;
#pragma unroll 1
  for (int first = 0; first < shape.columns; first += shape.chunk_columns) {
    const int count = min(shape.chunk_columns, shape.columns - first);
    const int stride = staged_stride<W>(count);
    stage<W>(block, layer, product, first, count, stride);
    __syncthreads();
    const TileStream<W> stream(shape.columns, count);
    const auto locate = [&](int tile) { return weights.locate(tile, first); };
    if (first > 0) stream.load_first(shape.first_tile, shape.last_tile, locate, registers);
    stream.multiply(shape.first_tile, shape.last_tile, block.staged, block.a.rows, stride,
                    *block.scratch, registers, locate,
                    [&](int tile, int row, int column, float low, float high) {
                      store_sums(block.a, product, shape.outputs, tile * shape.rows_per_tile + row,
                                 column, low, high);
                    });
  }
}

// All products of all layers run through one copy of the code: a kernel that wrote them out one
// after another was 208 KiB long and spent most of its time waiting for instructions.
template <typename W, bool kKvF8>
// spill: some 20 words that live across the attention phase; none is touched inside a loop over
// weights.
__global__ void __launch_bounds__(kStreamThreads, 1)
    decode_all_layers(const __grid_constant__ DecodeArguments a,
                      const __grid_constant__ DecodeLayers layers) {
  extern __shared__ __align__(16) uint8_t shared[];
  Block block{a,
              layers,
              static_cast<Workspace*>(a.workspace),
              reinterpret_cast<StreamScratch*>(shared),
              reinterpret_cast<Bf16*>(shared + sizeof(StreamScratch)),
              reinterpret_cast<BlockTail*>(shared + sizeof(StreamScratch) + kStagedBytes)};
  UnitRegisters registers;
  fetch_layer(block, 0);
  if (threadIdx.x < a.rows) block.tail->context[threadIdx.x] = a.context_length[threadIdx.x];
  if (threadIdx.x < kDecodeProducts) {
    block.tail->shapes[threadIdx.x] = product_shape<W>(a, static_cast<DecodeProduct>(threadIdx.x));
  }
  __syncthreads();
  Product<W>(block, block.tail->layers[0], DecodeProduct::qkv).load_first(registers);
  const int steps = a.num_layers * kDecodeProducts;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int index = step / kDecodeProducts;
    const auto product = static_cast<DecodeProduct>(step % kDecodeProducts);
    const DecodeLayer& layer = block.tail->layers[index % 2];
    if (product == DecodeProduct::qkv) fetch_layer(block, index + 1);
    run_product<W>(block, registers, layer, product);
    if (step + 1 == steps) break;
    arrive(block);
    if (product == DecodeProduct::qkv) {
      const AttentionStart start = begin_attention<kKvF8>(block, layer, blockIdx.x);
      wait(block);
      attention<kKvF8>(block, layer, start);
      arrive(block);
    }
    const Product<W> next(block, block.tail->layers[(step + 1) / kDecodeProducts % 2],
                          static_cast<DecodeProduct>((step + 1) % kDecodeProducts));
    next.load_first(registers);
    next.prefetch(a.prefetch_bytes);
    wait(block);
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

Kernel kernel_of(bool weight_is_f8, bool kv_is_f8) {
  if (weight_is_f8) return kv_is_f8 ? decode_all_layers<Fp8, true> : decode_all_layers<Fp8, false>;
  return kv_is_f8 ? decode_all_layers<Bf16, true> : decode_all_layers<Bf16, false>;
}

}  // namespace

bool decode_supports(const DecodeArguments& a) {
  const int alignment = a.weight_is_f8 ? 16 : 8;
  const int group = a.num_kv_heads > 0 ? a.num_heads / a.num_kv_heads : 0;
  const int norm_bytes =
      a.rows * 2 *
      (a.weight_is_f8 ? staged_stride<Fp8>(a.hidden_size) : staged_stride<Bf16>(a.hidden_size));
  return a.rows >= 1 && a.rows <= kDecodeRows && a.num_layers > 0 &&
         a.num_layers <= kDecodeMaxLayers && a.num_kv_heads > 0 && a.num_heads <= kDecodeMaxHeads &&
         a.num_heads % a.num_kv_heads == 0 && (group == 1 || group == 2 || group == 4) &&
         a.hidden_size % alignment == 0 && a.intermediate_size % alignment == 0 &&
         norm_bytes <= kStagedBytes;
}

int64_t decode_workspace_bytes() {
  return static_cast<int64_t>(sizeof(Workspace)) + int64_t{kDecodeRows} * kDecodeMaxHeads *
                                                       kDecodeMaxSplits *
                                                       static_cast<int64_t>(sizeof(Partial));
}

cudaError_t prepare_decode() {
  for (const bool weight_is_f8 : {false, true}) {
    for (const bool kv_is_f8 : {false, true}) {
      const cudaError_t error =
          cudaFuncSetAttribute(kernel_of(weight_is_f8, kv_is_f8),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
      if (error != cudaSuccess) return error;
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
      reinterpret_cast<const void*>(kernel_of(arguments.weight_is_f8, arguments.kv_is_f8)),
      dim3(static_cast<unsigned>(num_multiprocessors)), dim3(kStreamThreads), parameters,
      kSharedBytes, stream);
}

}  // namespace glimpse::cuda
