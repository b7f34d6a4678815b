// Who attends to what in the fused decoder, and how the partial results become one: of a block's
// warps, then of the blocks that share a head.
#pragma once

#include "cuda/decode_block.cuh"

namespace glimpse::cuda::fused {

__device__ inline int splits_of(int context, int max_splits) {
  if (context <= 0) return 0;
  return max(1, min(max_splits, (context + kTokensPerSplit - 1) / kTokensPerSplit));
}

__device__ inline AttentionUnit attention_unit(const Block& block, int index) {
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

/// Shared memory of the attention phase; lies where products stage their activations.
struct AttentionShared {
  Bf16 queries[kMaxGroup][kDecodeHeadDim + 8];
  uint4 new_key[16];  // the newest token as the cache stores it
  uint4 new_value[16];
  float new_key_scale, new_value_scale;
  float padding[2];
  Partial partials[kMaxGroup][kStreamWarps];
};
static_assert(sizeof(AttentionShared) <= Layout<false>::kStagedBytes);
static_assert(sizeof(AttentionShared) <= Layout<true>::kStagedBytes);

/// The block's warps become one partial result per query head, published for the next phase.
__device__ inline void publish_partials(const Block& block, const AttentionUnit& unit,
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
    // Lane i has the statistics of part i % kStreamWarps.
    const int part = static_cast<int>(threadIdx.x) % kStreamWarps;
    const float part_maximum = part < active ? parts[part].maximum : -INFINITY;
    float values[kStreamWarps];
#pragma unroll
    for (int i = 0; i < kStreamWarps; ++i) values[i] = i < active ? parts[i].sums[dim] : 0.0F;
    float maximum = part_maximum;
#pragma unroll
    for (int step = kStreamWarps / 2; step > 0; step /= 2) {
      maximum = fmaxf(maximum, __shfl_xor_sync(0xFFFFFFFFU, maximum, step));
    }
    const float keep = part < active ? exp2f(part_maximum - maximum) : 0.0F;
    float weight_sum = part < active ? keep * parts[part].weight_sum : 0.0F;
#pragma unroll
    for (int step = kStreamWarps / 2; step > 0; step /= 2) {
      weight_sum += __shfl_xor_sync(0xFFFFFFFFU, weight_sum, step);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kStreamWarps; ++i) {
      sum += __shfl_sync(0xFFFFFFFFU, keep, i) * values[i];
    }
    uint32_t* out = partial_of(block, exchange, unit.row, unit.kv_head * group + head, unit.split);
    publish(out + dim, __float_as_uint(sum));
    if (dim == 0) publish(out + kDecodeHeadDim, maximum, weight_sum);
  }
}

/// Attention of one head as a warp adds it up: lane i has dimensions 4i to 4i + 3.
struct LaneAttention {
  float sums[4];
  float maximum, weight_sum;

  __device__ void add(const float4& part, float part_maximum, float part_weights) {
    const float largest = fmaxf(maximum, part_maximum);
    const float keep = exp2f(maximum - largest);
    const float factor = exp2f(part_maximum - largest);
    maximum = largest;
    weight_sum = keep * weight_sum + factor * part_weights;
    sums[0] = keep * sums[0] + factor * part.x;
    sums[1] = keep * sums[1] + factor * part.y;
    sums[2] = keep * sums[2] + factor * part.z;
    sums[3] = keep * sums[3] + factor * part.w;
  }
};

/// A head's published partial results, as a warp adds them up: lane i has dimensions 4i to 4i + 3.
struct HeadParts {
  static constexpr int kAtOnce = kDecodeMaxSplits - 1;
  const uint32_t* parts;
  int splits;
  uint4 words[kAtOnce];
  float sum[4] = {0, 0, 0, 0};

  __device__ HeadParts(const uint32_t* from, int count) : parts(from), splits(count) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      words[i] = {0, 0, 0, 0};
      if (i < splits) words[i] = peek4(split(i) + static_cast<int>(threadIdx.x) % 32 * 4);
    }
  }

  __device__ const uint32_t* split(int i) const {
    return parts + i * (sizeof(Partial) / 4);
  }
  /// Once the statistics are there the sums are too, or about to be: asks again for all at once.
  __device__ void refresh() {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < splits && !is_there(words[i])) {
        words[i] = peek4(split(i) + static_cast<int>(threadIdx.x) % 32 * 4);
      }
    }
  }
  /// `factor` of split i is in lane i.
  __device__ void add_up(float factor) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < splits) accumulate(i, words[i], __shfl_sync(0xFFFFFFFFU, factor, i));
    }
  }

 private:
  __device__ void accumulate(int i, uint4 first_seen, float factor) {
    const float4 part = collect(split(i) + static_cast<int>(threadIdx.x) % 32 * 4, first_seen);
    __syncwarp();
    sum[0] += part.x * factor;
    sum[1] += part.y * factor;
    sum[2] += part.z * factor;
    sum[3] += part.w * factor;
  }
};

/// If every block added up all splits of all heads, that would be the most of what goes through L2
/// here: instead the block of the first split collects the others' partial results and publishes
/// the head as it is staged, in the words of its own partial result.
template <typename W>
__device__ void publish_attended(const Block& block, const AttentionUnit& unit,
                                 const AttentionShared& shared, Exchange& exchange) {
  const DecodeArguments& a = block.a;
  const int group = a.num_heads / a.num_kv_heads;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= group) return;
  const int others = splits_of(unit.context, block.tail->max_splits) - 1;
  uint32_t* out = partial_of(block, exchange, unit.row, unit.kv_head * group + warp, 0);
  HeadParts parts(out + sizeof(Partial) / 4, others);
  uint2 statistics{kNothing, kNothing};
  const uint32_t* const statistics_at = parts.split(lane) + kDecodeHeadDim;
  if (lane < others) statistics = peek2(statistics_at);
  const int tiles = (unit.last_token - unit.first_token + kTileTokens - 1) / kTileTokens;
  const int active = min(tiles, kStreamWarps);
  LaneAttention own{{0, 0, 0, 0}, -INFINITY, 0};
#pragma unroll 2
  for (int i = 0; i < active; ++i) {
    const Partial& part = shared.partials[warp][i];
    own.add(reinterpret_cast<const float4*>(part.sums)[lane], part.maximum, part.weight_sum);
  }
  // Lane i has what is known of other split i, the lane behind them what is known of this one.
  float maximum = -INFINITY;
  float weight_sum = 0;
  if (lane < others) {
    const uint2 bits = collect(statistics_at, statistics);
    maximum = __uint_as_float(bits.x);
    weight_sum = __uint_as_float(bits.y);
  } else if (lane == others) {
    maximum = own.maximum;
    weight_sum = own.weight_sum;
  }
  __syncwarp();
  parts.refresh();
  float factor = exp2f(maximum - warp_max(maximum));
  factor = __fdividef(factor, warp_sum(factor * weight_sum));
  parts.add_up(factor);
  const float own_factor = __shfl_sync(0xFFFFFFFFU, factor, others);
#pragma unroll
  for (int i = 0; i < 4; ++i) parts.sum[i] += own.sums[i] * own_factor;
  float scale = 0;
  const uint2 words = staged_words<W>(parts.sum, scale);
  publish(out + lane * 2, __uint_as_float(words.x), __uint_as_float(words.y));
  if (lane < 2) publish(out + kDecodeHeadDim + lane * 2, lane == 0 ? scale : 0.0F, 0.0F);
}

}  // namespace glimpse::cuda::fused
