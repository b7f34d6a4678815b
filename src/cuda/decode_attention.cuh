// Attention of the fused decoder: a block takes one kv head of one sequence over a run of its keys,
// a warp 16 keys at a time through mma.sync, all query heads of the group at once.
#pragma once

#include <cuda_fp8.h>

#include "cuda/decode_partials.cuh"

namespace glimpse::cuda::fused {

/// One head of a token by one warp: lane i holds dimensions 2i, 2i + 1, 64 + 2i and 64 + 2i + 1.
struct HeadLane {
  float x[4];
};

/// What a head's norm and rotation need besides the head: loaded before the head is there.
struct HeadConstants {
  float2 norm[2];
  float2 cosines, sines;
};

__device__ inline HeadConstants load_head_constants(const DecodeArguments& a, const float* norm,
                                                    int row) {
  const int lane = threadIdx.x % 32;
  const auto pair = [&](const float* from) {
    return __ldg(reinterpret_cast<const float2*>(from) + lane);
  };
  HeadConstants constants{{{1, 1}, {1, 1}}, {}, {}};
  if (norm != nullptr) {
    constants.norm[0] = pair(norm);
    constants.norm[1] = pair(norm + kHalf);
  }
  constants.cosines = pair(a.cosines + row * kHalf);
  constants.sines = pair(a.sines + row * kHalf);
  return constants;
}

/// Waits for a published head: 64 words of bf16 pairs.
__device__ inline HeadLane await_head(const uint32_t* head) {
  const int lane = threadIdx.x % 32;
  uint32_t low = peek(head + lane);
  uint32_t high = peek(head + kHalf / 2 + lane);
  for (int tries = 0; low == 0 || high == 0; ++tries) {
    if (tries > kPollLimit) __trap();
    if (low == 0) low = peek(head + lane);
    if (high == 0) high = peek(head + kHalf / 2 + lane);
  }
  __syncwarp();
  return {{__uint_as_float(~low << 16), __uint_as_float(~low & 0xFFFF0000U),
           __uint_as_float(~high << 16), __uint_as_float(~high & 0xFFFF0000U)}};
}

__device__ inline float rounded_to_bf16(float x) {
  return __bfloat162float(__float2bfloat16(x));
}

/// Norm (where the model has one), then rotary: rounded to bf16 after each, as the unfused
/// operations do.
__device__ inline void norm_and_rotate(HeadLane& head, const HeadConstants& constants,
                                       bool has_norm, float epsilon) {
  const float weights[4] = {constants.norm[0].x, constants.norm[0].y, constants.norm[1].x,
                            constants.norm[1].y};
  if (has_norm) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += head.x[i] * head.x[i];
    const float factor = rsqrtf(warp_sum(sum) / kDecodeHeadDim + epsilon);
#pragma unroll
    for (int i = 0; i < 4; ++i) head.x[i] = rounded_to_bf16(head.x[i] * factor * weights[i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float c = i == 0 ? constants.cosines.x : constants.cosines.y;
    const float s = i == 0 ? constants.sines.x : constants.sines.y;
    const float low = head.x[i];
    const float high = head.x[i + 2];
    head.x[i] = rounded_to_bf16(low * c - high * s);
    head.x[i + 2] = rounded_to_bf16(high * c + low * s);
  }
}

/// A lane's dimensions as bf16 pairs.
__device__ inline void put_head(const HeadLane& head, void* to) {
  auto* pairs = static_cast<uint32_t*>(to) + threadIdx.x % 32;
  pairs[0] = bf16_pair(head.x[0], head.x[1]);
  pairs[kHalf / 2] = bf16_pair(head.x[2], head.x[3]);
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
    auto* to = static_cast<uint16_t*>(cache) + entry * kHalf;
    if (lane == 0) {
      if (entry >= 0) scales[entry] = scale;
      *scale_copy = scale;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint16_t bits = __nv_cvt_float2_to_fp8x2(
          {head.x[2 * i] / scale, head.x[2 * i + 1] / scale}, __NV_SATFINITE, __NV_E4M3);
      if (entry >= 0) to[lane + i * kHalf / 2] = bits;
      static_cast<uint16_t*>(copy)[lane + i * kHalf / 2] = bits;
    }
  } else {
    if (entry >= 0) put_head(head, static_cast<Bf16*>(cache) + entry * kDecodeHeadDim);
    put_head(head, copy);
  }
}

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

/// This warp's first token in a unit's first round.
__device__ inline int tile_begin(const AttentionUnit& unit) {
  return unit.first_token + this_warp() * kTileTokens;
}

/// Where a tile lies in the cache.
struct TilePlace {
  int64_t entry;  // of its first token
  int last;       // token that it has: those beyond repeat it
};

__device__ inline TilePlace tile_place(const DecodeArguments& a, const AttentionUnit& unit,
                                       int begin) {
  const int page = __ldg(a.page_table + int64_t{unit.row} * a.max_pages + begin / kPageTokens);
  return {(int64_t{page} * a.num_kv_heads + unit.kv_head) * kPageTokens + begin % kPageTokens,
          unit.last_token - 1 - begin};
}

/// The keys of a tile and, where the cache has them, all scales.
template <bool kKvF8>
__device__ void load_keys(const DecodeLayer& layer, const TilePlace& place, KvTile<kKvF8>& tile) {
  constexpr int kBytes = kDecodeHeadDim * (kKvF8 ? 1 : 2);
  const int lane = threadIdx.x % 32;
  const auto* keys = static_cast<const uint8_t*>(layer.keys) + place.entry * kBytes + lane % 4 * 16;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint8_t* from = keys + min(lane / 4 + 8 * i, place.last) * kBytes;
#pragma unroll
    for (int piece = 0; piece < KvTile<kKvF8>::kKeyPieces; ++piece) {
      tile.keys[i][piece] = __ldcg(reinterpret_cast<const uint4*>(from + piece * 64));
    }
  }
  if constexpr (kKvF8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = min(value_token(i), place.last);
      tile.key_scales[i] = __ldcg(layer.key_scales + place.entry + token);
      tile.value_scales[i] = __ldcg(layer.value_scales + place.entry + token);
    }
  }
}

template <bool kKvF8>
__device__ void load_values(const DecodeLayer& layer, const TilePlace& place, KvTile<kKvF8>& tile) {
  constexpr int kBytes = kDecodeHeadDim * (kKvF8 ? 1 : 2);
  const int lane = threadIdx.x % 32;
  const auto* values =
      static_cast<const uint8_t*>(layer.values) + place.entry * kBytes + lane / 4 * 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint8_t* from = values + min(value_token(i), place.last) * kBytes;
#pragma unroll
    for (int piece = 0; piece < KvTile<kKvF8>::kValuePieces; ++piece) {
      tile.values[i][piece] = __ldcg(reinterpret_cast<const uint4*>(from + piece * 128));
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
                              const uint32_t* qkv, AttentionShared& shared) {
  const DecodeArguments& a = block.a;
  const int group = a.num_heads / a.num_kv_heads;
  const int warp = threadIdx.x / 32;
  const bool owns_newest = unit.last_token == unit.context;
  if (warp >= group + 2 || (warp >= group && !owns_newest)) return;
  const int head_index = warp < group    ? unit.kv_head * group + warp
                         : warp == group ? a.num_heads + unit.kv_head
                                         : a.num_heads + a.num_kv_heads + unit.kv_head;
  const int heads = a.num_heads + 2 * a.num_kv_heads;
  HeadLane head = await_head(qkv + (unit.row * heads + head_index) * kHalf);
  if (warp <= group) {
    norm_and_rotate(head, constants, (warp < group ? layer.q_norm : layer.k_norm) != nullptr,
                    a.epsilon);
  }
  if (warp < group) return put_head(head, shared.queries[warp]);
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

/// What the tokens of a tile weigh, as the B operand of the values' product, and what the sums
/// before are worth beside them: of heads 2t and 2t + 1.
struct TileWeights {
  uint32_t b[2];
  float keep[2];
};

/// The scores of a tile of tokens, `count` of them valid.
template <bool kKvF8>
__device__ TileWeights score_tile(const KvTile<kKvF8>& tile, const AttentionShared& shared,
                                  int group, int count, WarpAttention& state) {
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
  return {{bf16_pair(weights[0], weights[1]), bf16_pair(weights[2], weights[3])},
          {__shfl_sync(0xFFFFFFFFU, keep, 8 * t), __shfl_sync(0xFFFFFFFFU, keep, 8 * t + 4)}};
}

template <bool kKvF8>
__device__ void add_values(const KvTile<kKvF8>& tile, const TileWeights& weights,
                           WarpAttention& state) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    state.sums[i][0] *= weights.keep[0];
    state.sums[i][1] *= weights.keep[1];
    state.sums[i][2] *= weights.keep[0];
    state.sums[i][3] *= weights.keep[1];
    uint32_t a[4];
    value_operand<kKvF8>(tile, i, a);
    mma_bf16(state.sums[i], a, weights.b[0], weights.b[1]);
  }
}

/// A warp's attention into a slot of shared memory.
template <bool kKvF8>
__device__ void leave_partial(const WarpAttention& state, int group, int slot,
                              const WarpPartials& partials) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  float total = state.weight_sum;
  total += __shfl_xor_sync(0xFFFFFFFFU, total, 1);
  total += __shfl_xor_sync(0xFFFFFFFFU, total, 2);
  if (lane % 4 == 0 && g < group) {
    partials.at(g, slot).maximum = state.maximum;
    partials.at(g, slot).weight_sum = total;
  }
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int head = lane % 4 * 2 + odd;
    if (head >= group) continue;
    float* sums = partials.at(head, slot).sums;
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

/// Adds what another warp left in a slot to a warp's attention.
template <bool kKvF8>
__device__ void join_partial(WarpAttention& state, int group, int slot,
                             const WarpPartials& partials) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const Partial& of_head = partials.at(min(g, group - 1), slot);
  const float maximum = fmaxf(state.maximum, of_head.maximum);
  const float keep = exp2f(state.maximum - maximum);
  const float take = exp2f(of_head.maximum - maximum);
  state.maximum = maximum;
  state.weight_sum *= keep;
  if (t == 0) state.weight_sum += of_head.weight_sum * take;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int head = 2 * t + odd;
    const float keep_sums = __shfl_sync(0xFFFFFFFFU, keep, 4 * head);
    const float take_sums = __shfl_sync(0xFFFFFFFFU, take, 4 * head);
    if (head >= group) continue;
    const float* sums = partials.at(head, slot).sums;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* from =
          reinterpret_cast<const float4*>(sums + (kKvF8 ? 16 * g + 8 * half : 64 * half + 8 * g));
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const float4 four = from[pair];
        float(&first)[4] = state.sums[4 * half + 2 * pair];
        float(&second)[4] = state.sums[4 * half + 2 * pair + 1];
        first[odd] = first[odd] * keep_sums + four.x * take_sums;
        first[2 + odd] = first[2 + odd] * keep_sums + four.y * take_sums;
        second[odd] = second[odd] * keep_sums + four.z * take_sums;
        second[2 + odd] = second[2 + odd] * keep_sums + four.w * take_sums;
      }
    }
  }
}

/// What a block can load of its first unit beforehand: everything but the new token's projections.
template <bool kKvF8>
struct AttentionStart {
  HeadConstants constants;
  KvTile<kKvF8> tile;

  __device__ AttentionStart() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2& pair = i < 2 ? constants.norm[i] : i == 2 ? constants.cosines : constants.sines;
      forget(pair.x);
      forget(pair.y);
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
  const int begin = tile_begin(unit);
  if (begin >= unit.last_token) return;
  const TilePlace place = tile_place(a, unit, begin);
  load_keys<kKvF8>(layer, place, start.tile);
  load_values<kKvF8>(layer, place, start.tile);
}

/// Returns the first of the warps that are not needed to add up heads at the end.
template <bool kKvF8, bool kMany>
__device__ int attention(const Block& block, const DecodeLayer& layer, AttentionStart<kKvF8>& start,
                         Exchange& exchange) {
  const DecodeArguments& a = block.a;
  auto& shared = *reinterpret_cast<AttentionShared*>(
      kMany ? block.wide_sums + (block.wide_bytes - sizeof(AttentionShared)) / sizeof(float)
            : block.narrow_sums);
  const int units = a.rows * a.num_kv_heads * block.tail->max_splits;
  const int group = a.num_heads / a.num_kv_heads;
  const WarpPartials partials = WarpPartials::of<kMany>(block, group);
  const int warp = this_warp();
  AttentionUnit unit = block.tail->unit;
  int idle_warp = 0;
#pragma unroll 1
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    if (index != static_cast<int>(blockIdx.x)) {
      unit = attention_unit(block, index);
      begin_attention<kKvF8>(block, layer, unit, start);
    }
    if (unit.first_token >= unit.last_token) continue;
    prepare_heads<kKvF8>(block, layer, unit, start.constants, exchange.qkv, shared);
    __syncthreads();
    const bool owns_newest = unit.last_token == unit.context;
    WarpAttention state;
    KvTile<kKvF8>& tile = start.tile;
#pragma unroll 1
    for (int begin = tile_begin(unit); begin < unit.last_token;) {
      if (owns_newest) patch_tile<kKvF8>(shared, unit.context - 1 - begin, tile);
      // What is behind its use makes room for the next round's.
      const int next = begin + kTokensPerRound;
      const bool has_next = next < unit.last_token;
      TilePlace place{};
      if (has_next) place = tile_place(a, unit, next);
      const TileWeights weights =
          score_tile<kKvF8>(tile, shared, group, unit.last_token - begin, state);
      if (has_next) load_keys<kKvF8>(layer, place, tile);
      add_values<kKvF8>(tile, weights, state);
      if (has_next) load_values<kKvF8>(layer, place, tile);
      begin = next;
    }
    const bool has_tokens = tile_begin(unit) < unit.last_token;
    if (partials.warps < kStreamWarps) {
      const int tokens = partials.warps * kTileTokens;  // from this warp's first to its partner's
      if (warp >= partials.warps && has_tokens) {
        leave_partial<kKvF8>(state, group, warp - partials.warps, partials);
      }
      __syncthreads();
      if (warp < partials.warps && tile_begin(unit) + tokens < unit.last_token) {
        join_partial<kKvF8>(state, group, warp, partials);
      }
      __syncwarp();
    }
    if (warp < partials.warps && has_tokens) leave_partial<kKvF8>(state, group, warp, partials);
    __syncthreads();
    if (unit.split == 0) {
      publish_attended(block, unit, partials, exchange);
    } else {
      publish_partials(block, unit, partials, exchange);
    }
    idle_warp = unit.split == 0 ? group : 0;
    if (index + static_cast<int>(gridDim.x) < units) __syncthreads();
  }
  return idle_warp;
}

}  // namespace glimpse::cuda::fused
