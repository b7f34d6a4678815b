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

/// Shared memory of the attention phase: what its warps read, beside the sums of o and down or, of
/// many rows, behind what they leave.
struct AttentionShared {
  Bf16 queries[kMaxGroup][kDecodeHeadDim + 8];
  uint4 new_key[16];  // the newest token as the cache stores it
  uint4 new_value[16];
  float new_key_scale, new_value_scale;
  float padding[2];
};

/// And what they leave, in the place of qkv's sums: those have been added up when the queries are
/// there. Where there is no room for a large group's results of all warps, the second half of them
/// joins the first.
struct WarpPartials {
  Partial* of_warp;  // [heads of the group, warps]
  int warps;

  template <bool kMany>
  __device__ static WarpPartials of(const Block& block, int group) {
    const int bytes = block.wide_bytes - (kMany ? static_cast<int>(sizeof(AttentionShared)) : 0);
    const bool fits = group * kStreamWarps * static_cast<int>(sizeof(Partial)) <= bytes;
    return {reinterpret_cast<Partial*>(block.wide_sums), fits ? kStreamWarps : kStreamWarps / 2};
  }
  __device__ Partial& at(int head, int warp) const { return of_warp[head * warps + warp]; }
};
/// What the attention needs at least of the place of the first sums.
template <bool kMany>
constexpr int kLeastWideBytes = kMaxGroup* kStreamWarps / 2 * int{sizeof(Partial)} +
                                (kMany ? int{sizeof(AttentionShared)} : 0);
static_assert(sizeof(AttentionShared) <= Layout<false>::kNarrowBytes);

/// The block's warps become one partial result per query head, published for the next phase.
__device__ inline void publish_partials(const Block& block, const AttentionUnit& unit,
                                        const WarpPartials& partials, Exchange& exchange) {
  const DecodeArguments& a = block.a;
  const int group = a.num_heads / a.num_kv_heads;
  const int dim = static_cast<int>(threadIdx.x) % kDecodeHeadDim;
  const int tiles = (unit.last_token - unit.first_token + kTileTokens - 1) / kTileTokens;
  const int active = min(tiles, partials.warps);
#pragma unroll 1
  for (int head = static_cast<int>(threadIdx.x) / kDecodeHeadDim; head < group;
       head += kStreamThreads / kDecodeHeadDim) {
    const Partial* parts = &partials.at(head, 0);
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
    if (dim == 0) {
      publish2(out + kDecodeHeadDim, __float_as_uint(maximum), __float_as_uint(weight_sum));
    }
  }
}

/// If every block added up all splits of all heads, that would be the most of what goes through L2
/// here: instead the block of the first split collects the others' partial results and publishes
/// the head. A warp takes a head, lane i of it dimensions 4i to 4i + 3. The code runs once a layer,
/// so that it is short rather than unrolled.
__device__ inline void publish_attended(const Block& block, const AttentionUnit& unit,
                                        const WarpPartials& partials, Exchange& exchange) {
  const DecodeArguments& a = block.a;
  const int group = a.num_heads / a.num_kv_heads;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= group) return;
  const int head = unit.kv_head * group + warp;
  const int others = splits_of(unit.context, block.tail->max_splits) - 1;
  // Of the other split i, from 1 on.
  const auto part_of = [&](int i) { return partial_of(block, exchange, unit.row, head, 1 + i); };
  // Lanes up to kDecodeMaxSplits know the statistics of other splits, those behind them of this
  // block's warps.
  constexpr int kFirstOwn = kDecodeMaxSplits;
  static_assert(kFirstOwn + kStreamWarps <= 32);
  const Partial* own = &partials.at(warp, 0);
  const int tiles = (unit.last_token - unit.first_token + kTileTokens - 1) / kTileTokens;
  const int active = min(tiles, partials.warps);
  constexpr int kAtOnce = 7;
  Awaited<kAtOnce> words;
  const auto ask = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      words.ask(i, part_of(first + i) + lane * 4, first + i < others);
    }
  };
  uint2 bits{kNothing, kNothing};
  if (others > 0) {
    if (lane < others) bits = peek2(part_of(lane) + kDecodeHeadDim);
    ask(0);
    words.wait([&](int i) { return part_of(i) + lane * 4; },
               [&] {
                 const bool is_here = bits.x != 0 && bits.y != 0;
                 if (!is_here) bits = peek2(part_of(lane) + kDecodeHeadDim);
                 return is_here;
               });
  }
  float maximum = -INFINITY;
  float weight_sum = 0;
  if (lane < others) {
    maximum = __uint_as_float(~bits.x);
    weight_sum = __uint_as_float(~bits.y);
  } else if (lane >= kFirstOwn && lane < kFirstOwn + active) {
    maximum = own[lane - kFirstOwn].maximum;
    weight_sum = own[lane - kFirstOwn].weight_sum;
  }
  float factor = exp2f(maximum - warp_max(maximum));
  factor = __fdividef(factor, warp_sum(factor * weight_sum));
  float sum[4] = {0, 0, 0, 0};
  const auto add = [&](float4 part, int of) {
    const float weight = __shfl_sync(0xFFFFFFFFU, factor, of);
    sum[0] += part.x * weight;
    sum[1] += part.y * weight;
    sum[2] += part.z * weight;
    sum[3] += part.w * weight;
  };
#pragma unroll 2
  for (int i = 0; i < active; ++i) {
    add(reinterpret_cast<const float4*>(own[i].sums)[lane], kFirstOwn + i);
  }
#pragma unroll 1
  for (int first = 0; first < others;) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= others) break;
      add(decoded(words.at[i]), first + i);
    }
    first += kAtOnce;
    if (first >= others) break;
    ask(first);
    words.wait([&](int i) { return part_of(first + i) + lane * 4; });
  }
  const int of_row = unit.row * a.num_heads + head;
  publish2(exchange.attended + of_row * kHalf + pair_place(lane * 2, a.weight_is_f8),
           bf16_pair(sum[0], sum[1]), bf16_pair(sum[2], sum[3]));
}

}  // namespace glimpse::cuda::fused
