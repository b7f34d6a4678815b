// Sampling on the device. summarize_logits reads each row once with many blocks: its softmax sum,
// and its best token after penalties and mask, which is the answer at temperature 0; the last block
// of a row gives it out. choose_tokens draws the others with one block per row, without sorting the
// vocabulary. With a small top-k it looks at a short list only: of k parts the best tokens are at
// least as good as the least good of them, so that none below it can be among the k best;
// gather_best collects the rest with many blocks.
//
// Tokens are ordered by falling logit, then by id. With d = (best - logit) / temperature, a token's
// weight exp(-d) is counted in units of 2^-40, as an integer: sums are then exact and do not depend
// on the order in which threads add. What top-k, top-p, min-p keep is always a beginning of that
// order, and the drawn token is the first whose running sum reaches a target. A histogram over d
// finds the few tokens around such a target; those are sorted in shared memory.
#include <algorithm>

#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kSummaryThreads = 256;
constexpr int kSummaryWarps = kSummaryThreads / 32;
constexpr int kSummaryLoads = 12;  // logits of a thread that are on their way at once
constexpr int kMaxParts = 56;      // blocks of a row in summarize_logits
constexpr int kThreads = 1024;
constexpr int kBins = 2 * kThreads;
constexpr float kBinsPerUnit = 64.0F;  // of distance; the last bin takes all beyond 31
constexpr int kListCapacity = kThreads;
constexpr float kMassUnit = 1099511627776.0F;  // 2^40

struct alignas(16) Summary {
  float largest;  // logit as given
  float sum;      // of exp(logit - largest)
  float best;     // after penalties and mask
  int best_id;
};

using Key =
    unsigned long long;  // falling_bits() of the logit, then the id: rising in the tokens' order
constexpr int kMaxBest = kMaxParts * static_cast<int>(sizeof(Summary) / sizeof(Key));

struct SampleWorkspace {
  union {
    Summary parts[kMaxSamplingRows][kMaxParts];
    Key best[kMaxSamplingRows][kMaxBest];  // once the parts were added up
  };
  Summary rows[kMaxSamplingRows];
  float least[kMaxSamplingRows];        // of the logits that may be among the top k
  unsigned num_best[kMaxSamplingRows];  // of those; more than kMaxBest: some are missing
  unsigned num_done[kMaxSamplingRows];  // parts of a row; zeros between launches
};

/// One row's logits, and what changes them before the temperature does.
struct RowLogits {
  const float* logits;
  const uint16_t* counts;   // null: no penalties
  const uint32_t* allowed;  // null: no mask
  float repetition, presence, frequency;
  int vocab;

  __device__ RowLogits(const SampleArguments& a, int64_t row)
      : logits(a.logits + row * a.logits_stride),
        counts(nullptr),
        allowed(nullptr),
        repetition(a.repetition_penalty[row]),
        presence(a.presence_penalty[row]),
        frequency(a.frequency_penalty[row]),
        vocab(static_cast<int>(a.vocab)) {
    if (a.counts_row[row] >= 0) counts = a.token_counts + a.counts_row[row] * a.counts_stride;
    if (a.mask_row[row] >= 0) allowed = a.allowed + a.mask_row[row] * a.allowed_stride;
  }
  __device__ float penalised(int id, float logit) const {
    if (allowed != nullptr && (allowed[id / 32] >> (id % 32) & 1U) == 0) return -INFINITY;
    if (counts == nullptr || counts[id] == 0) return logit;
    logit = logit > 0 ? logit / repetition : logit * repetition;
    const int generated = counts[id] & 0x7FFF;
    if (generated > 0) logit -= presence + frequency * static_cast<float>(generated);
    return logit;
  }
};

__device__ inline bool is_better(float value, int id, float than, int than_id) {
  return value > than || (value == than && id < than_id);
}

__device__ inline Summary combine(const Summary& a, const Summary& b) {
  Summary result = is_better(b.best, b.best_id, a.best, a.best_id) ? b : a;
  result.largest = fmaxf(a.largest, b.largest);
  result.sum = 0;
  if (a.sum > 0) result.sum += a.sum * expf(a.largest - result.largest);
  if (b.sum > 0) result.sum += b.sum * expf(b.largest - result.largest);
  return result;
}

/// Lane 0 gets the combination of all lanes.
__device__ inline Summary combine_warp(Summary mine) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const Summary other = {__shfl_down_sync(0xFFFFFFFFU, mine.largest, offset),
                           __shfl_down_sync(0xFFFFFFFFU, mine.sum, offset),
                           __shfl_down_sync(0xFFFFFFFFU, mine.best, offset),
                           __shfl_down_sync(0xFFFFFFFFU, mine.best_id, offset)};
    mine = combine(mine, other);
  }
  return mine;
}

constexpr int kNoToken = INT32_MAX;

/// The summary of no logits.
__device__ inline Summary nothing() {
  return {-INFINITY, 0.0F, -INFINITY, kNoToken};
}

/// Whether the row's token is drawn; its best one is it otherwise.
__device__ inline bool is_drawn(const SampleArguments& a, int64_t row, const Summary& summary) {
  return a.temperature[row] > 0 && summary.best > -INFINITY;
}

/// The chosen token, with the log-probability that the model gave it.
__device__ inline void give_out(const SampleArguments& a, int64_t row, int id,
                                const Summary& summary) {
  a.ids[row] = id;
  if (a.reported_ids != nullptr) a.reported_ids[row] = id;
  const float logit = a.logits[row * a.logits_stride + id];
  a.log_probs[row] = logit - summary.largest - logf(summary.sum);
}

/// Reads this thread's share of a row, `part` of `num_parts`, kPack neighbours a load and several
/// loads at once, for visit_loads(first ids, logits); ids outside the row are -1. What is
/// neighbours in the vocabulary is often likely together, so parts are made of many short pieces.
template <int kPack, typename VisitLoads>
__device__ inline void visit_part(const RowLogits& row, int part, int num_parts,
                                  const VisitLoads& visit_loads) {
  constexpr int kPacks = kSummaryLoads / kPack;
  constexpr int kPiece = 32 * kPack;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int num_pieces = (row.vocab + kPiece - 1) / kPiece;
  const int step = num_parts * kSummaryWarps;
  for (int first = part + num_parts * warp; first < num_pieces; first += step * kPacks) {
    int ids[kPacks];
    float logits[kPacks][kPack];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      ids[i] = (first + i * step) * kPiece + lane * kPack;
      const bool is_inside = first + i * step < num_pieces && ids[i] < row.vocab;
      if (!is_inside) ids[i] = -1;
#pragma unroll
      for (int j = 0; j < kPack; ++j) logits[i][j] = -INFINITY;
      if (is_inside) load(row.logits + ids[i], logits[i]);
    }
    visit_loads(ids, logits);
  }
}

template <int kPack>
__device__ inline Summary summarize_part(const RowLogits& row, int part, int num_parts) {
  constexpr int kPacks = kSummaryLoads / kPack;
  Summary mine = nothing();
  visit_part<kPack>(row, part, num_parts,
                    [&](const int(&ids)[kPacks], const float(&logits)[kPacks][kPack]) {
                      float largest = mine.largest;
#pragma unroll
                      for (int i = 0; i < kPacks; ++i) {
                        if (ids[i] < 0) continue;
#pragma unroll
                        for (int j = 0; j < kPack; ++j) {
                          const float value = row.penalised(ids[i] + j, logits[i][j]);
                          if (is_better(value, ids[i] + j, mine.best, mine.best_id)) {
                            mine.best = value;
                            mine.best_id = ids[i] + j;
                          }
                          largest = fmaxf(largest, logits[i][j]);
                        }
                      }
                      if (mine.sum > 0) mine.sum *= expf(mine.largest - largest);
                      mine.largest = largest;
#pragma unroll
                      for (int i = 0; i < kPacks; ++i) {
#pragma unroll
                        for (int j = 0; j < kPack; ++j) {
                          if (logits[i][j] > -INFINITY) mine.sum += expf(logits[i][j] - largest);
                        }
                      }
                    });
  return mine;
}

/// Whether a short list is made for this row: it cannot be for more tokens than parts.
__device__ inline bool has_list(const SampleArguments& a, int64_t row, const Summary& summary,
                                int num_parts) {
  return is_drawn(a, row, summary) && a.top_k[row] > 0 && a.top_k[row] <= num_parts;
}

/// The `rank`-th best of the parts' best logits, by one warp.
__device__ inline float best_of_parts(const Summary* parts, int num_parts, int rank) {
  float result = INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < num_parts; i += 32) {
    const float mine = __ldcg(&parts[i].best);
    int num_better = 0;
    for (int j = 0; j < num_parts; ++j) num_better += __ldcg(&parts[j].best) > mine ? 1 : 0;
    if (num_better < rank) result = fminf(result, mine);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    result = fminf(result, __shfl_xor_sync(0xFFFFFFFFU, result, offset));
  }
  return result;
}

// Grid (parts, rows): each block summarises one part of a row; the last one to do so adds the parts
// up, always in the same order.
template <int kPack>
__global__ void __launch_bounds__(kSummaryThreads)
    summarize_logits(SampleArguments a, SampleWorkspace* work) {
  const int64_t row = blockIdx.y;
  const auto num_parts = static_cast<int>(gridDim.x);
  Summary mine = summarize_part<kPack>(RowLogits(a, row), static_cast<int>(blockIdx.x), num_parts);
  __shared__ Summary warps[kSummaryWarps];
  __shared__ bool is_last;
  mine = combine_warp(mine);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  mine = combine_warp(threadIdx.x < kSummaryWarps ? warps[threadIdx.x] : nothing());
  if (threadIdx.x == 0) {
    work->parts[row][blockIdx.x] = mine;
    __threadfence();
    is_last = atomicAdd(&work->num_done[row], 1U) == gridDim.x - 1;
    __threadfence();
  }
  __syncwarp();
  if (!is_last) return;
  mine = nothing();
  for (unsigned i = threadIdx.x; i < gridDim.x; i += 32) {
    const float4 other = __ldcg(reinterpret_cast<const float4*>(&work->parts[row][i]));
    mine = combine(mine, {other.x, other.y, other.z, __float_as_int(other.w)});
  }
  mine = combine_warp(mine);
  const bool makes_list =
      __shfl_sync(0xFFFFFFFFU, has_list(a, row, mine, num_parts) ? 1 : 0, 0) != 0;
  if (makes_list) {
    const float least = best_of_parts(work->parts[row], num_parts, a.top_k[row]);
    if (threadIdx.x == 0) work->least[row] = least;
  }
  if (threadIdx.x != 0) return;
  work->num_done[row] = 0;
  work->num_best[row] = 0;
  work->rows[row] = mine;
  if (!is_drawn(a, row, mine)) give_out(a, row, mine.best_id == kNoToken ? 0 : mine.best_id, mine);
}

// ---- drawing ------------------------------------------------------------------------------------

using Mass = unsigned long long;

__device__ inline Mass mass_of(float distance) {
  return static_cast<Mass>(expf(-distance) * kMassUnit + 0.5F);
}
/// Bits that rise as the value falls.
__device__ inline unsigned falling_bits(float value) {
  const unsigned bits = __float_as_uint(value + 0.0F);  // -0 becomes 0
  return bits >> 31 != 0 ? bits : ~bits & 0x7FFFFFFFU;
}
__device__ inline float value_of(Key key) {
  const auto bits = static_cast<unsigned>(key >> 32);
  return __uint_as_float(bits >> 31 != 0 ? bits : ~bits & 0x7FFFFFFFU);
}
__device__ inline Key key_of(float value, int id) {
  return Key{falling_bits(value)} << 32 | static_cast<unsigned>(id);
}
constexpr Key kAnyId = 0xFFFFFFFFU;

// Grid (parts, rows), as before: collects the logits that may be among the top k, in any order.
template <int kPack>
__global__ void __launch_bounds__(kSummaryThreads)
    gather_best(SampleArguments a, SampleWorkspace* work) {
  const int64_t row = blockIdx.y;
  const auto num_parts = static_cast<int>(gridDim.x);
  if (!has_list(a, row, work->rows[row], num_parts)) return;
  constexpr int kPacks = kSummaryLoads / kPack;
  const RowLogits logits_of_row(a, row);
  const float least = work->least[row];
  visit_part<kPack>(logits_of_row, static_cast<int>(blockIdx.x), num_parts,
                    [&](const int(&ids)[kPacks], const float(&logits)[kPacks][kPack]) {
#pragma unroll
                      for (int i = 0; i < kPacks; ++i) {
                        if (ids[i] < 0) continue;
#pragma unroll
                        for (int j = 0; j < kPack; ++j) {
                          const float value = logits_of_row.penalised(ids[i] + j, logits[i][j]);
                          if (!(value >= least && value > -INFINITY)) continue;
                          const unsigned place = atomicAdd(&work->num_best[row], 1U);
                          if (place < kMaxBest) work->best[row][place] = key_of(value, ids[i] + j);
                        }
                      }
                    });
}

/// Digits of a token's place in the order, coarse to fine. The last level leaves at most
/// 2^kIdBits tokens.
constexpr int kLevels = 5;
constexpr int kIdBits = 9;
__device__ inline int digit_of(int level, float distance, float value, int id) {
  const unsigned bits = falling_bits(value);
  switch (level) {
    case 0:
      return distance < 31.0F ? static_cast<int>(distance * kBinsPerUnit) : kBins - 1;
    case 1:
      return static_cast<int>(bits >> 21);
    case 2:
      return static_cast<int>(bits >> 10 & 0x7FFU);
    case 3:
      return static_cast<int>(bits & 0x3FFU);
    default:
      return id >> kIdBits;
  }
}

struct Workspace {
  unsigned counts[kBins];
  Mass masses[kBins];
  Key list[kListCapacity];
  Mass warp_sums[kThreads / 32];
  unsigned list_size;
  // What find_digit() found.
  int digit;
  unsigned digit_count;
  Mass before;
  // What find_in_list() found.
  Key key;
  Mass until;
};

/// A row in the middle of its draw.
struct Draw {
  RowLogits row;
  float best;
  float inverse_temperature;
  Workspace& work;

  __device__ float distance(float value) const { return (best - value) * inverse_temperature; }

  /// visit(id, value) for every token that is allowed; value is its logit after penalties.
  template <typename Visit>
  __device__ void visit_tokens(const Visit& visit) const {
    constexpr int kLoads = 4;
    for (int base = static_cast<int>(threadIdx.x); base < row.vocab; base += kThreads * kLoads) {
      float logits[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int id = base + i * kThreads;
        logits[i] = id < row.vocab ? row.logits[id] : -INFINITY;
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int id = base + i * kThreads;
        if (id >= row.vocab) break;
        const float value = row.penalised(id, logits[i]);
        if (value > -INFINITY) visit(id, value);  // false for NaN too
      }
    }
  }
};

/// The sum over this thread and those before it, by the whole block.
__device__ Mass running_sum(Mass mine, Workspace& work) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int offset = 1; offset < 32; offset *= 2) {
    const Mass other = __shfl_up_sync(0xFFFFFFFFU, mine, offset);
    if (lane >= offset) mine += other;
  }
  __syncthreads();  // warp_sums may still be read from the sum before
  if (lane == 31) work.warp_sums[threadIdx.x / 32] = mine;
  __syncthreads();
  Mass before = 0;
  for (unsigned warp = 0; warp < threadIdx.x / 32; ++warp) before += work.warp_sums[warp];
  return before + mine;
}

enum class Measure { count, mass };

/// Which tokens a step of a search looks at: those that share the digits found so far.
struct Path {
  int level = 0;
  int digits[kLevels] = {};

  __device__ bool holds(float distance, float value, int id) const {
    for (int i = 0; i < level; ++i) {
      if (digit_of(i, distance, value, id) != digits[i]) return false;
    }
    return true;
  }
};

/// Histogram of the next digit over the tokens on `path`.
template <Measure kMeasure>
__device__ void fill_histogram(const Draw& draw, const Path& path) {
  Workspace& work = draw.work;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
    work.counts[i] = 0;
    work.masses[i] = 0;
  }
  __syncthreads();
  // Most tokens of a sharp row are in the last bin: each thread counts those for itself.
  unsigned last_count = 0;
  Mass last_mass = 0;
  draw.visit_tokens([&](int id, float value) {
    const float distance = draw.distance(value);
    if (!path.holds(distance, value, id)) return;
    const int digit = digit_of(path.level, distance, value, id);
    const Mass mass = kMeasure == Measure::mass ? mass_of(distance) : 0;
    if (digit == kBins - 1) {
      ++last_count;
      last_mass += mass;
      return;
    }
    atomicAdd(&work.counts[digit], 1U);
    if (mass > 0) atomicAdd(&work.masses[digit], mass);
  });
  if (last_count > 0) atomicAdd(&work.counts[kBins - 1], last_count);
  if (last_mass > 0) atomicAdd(&work.masses[kBins - 1], last_mass);
  __syncthreads();
}

/// The digit at which the running sum of the histogram reaches `target`, the sum before it, and
/// how many tokens it has.
template <Measure kMeasure>
__device__ void find_digit(Workspace& work, Mass target) {
  const int first = 2 * static_cast<int>(threadIdx.x);
  const auto value = [&](int bin) -> Mass {
    return kMeasure == Measure::mass ? work.masses[bin] : work.counts[bin];
  };
  const Mass end = running_sum(value(first) + value(first + 1), work);
  const Mass middle = end - value(first + 1);
  const Mass begin = middle - value(first);
  if (begin < target && target <= end) {
    const int digit = target <= middle ? first : first + 1;
    work.digit = digit;
    work.digit_count = work.counts[digit];
    work.before = digit == first ? begin : middle;
  }
  __syncthreads();
}

/// Sorts the list, by the whole block; behind its tokens stand the largest keys.
__device__ void sort_list(Workspace& work) {
  __syncthreads();
  // Bitonic; thread i holds place i.
  const unsigned i = threadIdx.x;
  for (unsigned size = 2; size < 2 * work.list_size && size <= kListCapacity; size *= 2) {
    for (unsigned step = size / 2; step > 0; step /= 2) {
      const unsigned partner = i ^ step;
      const Key mine = work.list[i];
      const Key other = work.list[partner];
      __syncthreads();
      const bool rising = (i & size) == 0;
      const bool takes_smaller = (i < partner) == rising;
      work.list[i] = takes_smaller ? min(mine, other) : max(mine, other);
      __syncthreads();
    }
  }
}

/// Gathers the tokens that `wanted` selects, at most kListCapacity, in their order; the rest of the
/// list is the largest key.
template <typename Wanted>
__device__ void collect(const Draw& draw, const Wanted& wanted) {
  Workspace& work = draw.work;
  __syncthreads();
  work.list[threadIdx.x] = ~Key{0};
  if (threadIdx.x == 0) work.list_size = 0;
  __syncthreads();
  draw.visit_tokens([&](int id, float value) {
    if (!wanted(id, value)) return;
    const unsigned place = atomicAdd(&work.list_size, 1U);
    if (place < kListCapacity) work.list[place] = key_of(value, id);
  });
  sort_list(work);
}

/// The first key of the sorted list at which the running sum, `before` included, reaches `target`.
template <Measure kMeasure>
__device__ void find_in_list(const Draw& draw, Mass before, Mass target) {
  Workspace& work = draw.work;
  const Key key = work.list[threadIdx.x];
  Mass mine = 0;
  if (threadIdx.x < work.list_size) {
    mine = kMeasure == Measure::mass ? mass_of(draw.distance(value_of(key))) : 1;
  }
  const Mass until = before + running_sum(mine, work);
  if (until - mine < target && target <= until) {
    work.key = key;
    work.until = until;
  }
  __syncthreads();
}

/// The first token at which the running sum over all tokens reaches `target` (at most the total).
template <Measure kMeasure>
__device__ void find_token(const Draw& draw, Mass target) {
  Path path;
  Mass before = 0;
  for (int level = 0; level < kLevels; ++level) {
    fill_histogram<kMeasure>(draw, path);
    find_digit<kMeasure>(draw.work, target - before);
    path.digits[level] = draw.work.digit;
    path.level = level + 1;
    before += draw.work.before;
    if (draw.work.digit_count <= kListCapacity) break;
  }
  collect(draw, [&](int id, float value) { return path.holds(draw.distance(value), value, id); });
  find_in_list<kMeasure>(draw, before, target);
}

/// The mass of the tokens up to `last` whose weight is at least `least_weight`.
__device__ Mass sum_masses(const Draw& draw, Key last, float least_weight) {
  Mass mine = 0;
  draw.visit_tokens([&](int id, float value) {
    const float distance = draw.distance(value);
    if (key_of(value, id) <= last && expf(-distance) >= least_weight) mine += mass_of(distance);
  });
  mine = running_sum(mine, draw.work);
  __syncthreads();
  if (threadIdx.x == kThreads - 1) draw.work.until = mine;
  __syncthreads();
  return draw.work.until;
}

/// The running sum that the drawn token is the first to exceed uniform * total with.
__device__ inline Mass target_of(float uniform, Mass total) {
  const auto below = static_cast<Mass>(static_cast<double>(uniform) * static_cast<double>(total));
  return min(below + 1, total);
}

/// What a row keeps of its tokens.
struct Limits {
  Mass top_k;  // 0: all
  double top_p;
  float min_p;
  float uniform;
};

/// The drawn token when the list holds every token that may be kept.
__device__ int draw_from_list(const Draw& draw, const Limits& limits) {
  Workspace& work = draw.work;
  const unsigned i = threadIdx.x;
  const Key key = work.list[i];
  const float distance = draw.distance(value_of(key));
  // Tokens as likely as the last of the top k are kept too.
  const bool is_candidate = i < work.list_size && key <= (work.list[limits.top_k - 1] | kAnyId);
  const Mass mine = is_candidate ? mass_of(distance) : 0;
  const Mass until = running_sum(mine, work);
  __syncthreads();
  if (i == kThreads - 1) work.until = until;
  __syncthreads();
  const double most = limits.top_p * static_cast<double>(work.until);
  const bool is_kept =
      is_candidate &&
      (i == 0 || (static_cast<double>(until - mine) < most && expf(-distance) >= limits.min_p));
  const int num_kept = __syncthreads_count(is_kept);
  if (static_cast<int>(i) == num_kept - 1) work.before = until;
  __syncthreads();
  const Mass target = target_of(limits.uniform, work.before);
  if (is_kept && until - mine < target && target <= until) work.key = key;
  __syncthreads();
  return static_cast<int>(work.key & 0xFFFFFFFFU);
}

/// The drawn token in general: each limit is searched among all tokens.
__device__ int draw_from_all(const Draw& draw, const Limits& limits, Mass num_allowed) {
  Key last = ~Key{0};
  if (limits.top_k > 0 && limits.top_k < num_allowed) {
    find_token<Measure::count>(draw, limits.top_k);
    last = draw.work.key | kAnyId;  // tokens as likely as the last are kept too
  }
  if (limits.top_p < 1.0) {
    const Mass total = sum_masses(draw, last, 0.0F);
    const double most = limits.top_p * static_cast<double>(total);
    const Mass target = max(static_cast<Mass>(ceil(most)), Mass{1});
    find_token<Measure::mass>(draw, min(target, total));
    last = min(last, draw.work.key);
  }
  const Mass total = sum_masses(draw, last, limits.min_p);
  find_token<Measure::mass>(draw, target_of(limits.uniform, total));
  return static_cast<int>(draw.work.key & 0xFFFFFFFFU);
}

__device__ int draw_token(const Draw& draw, const Limits& limits) {
  Workspace& work = draw.work;
  fill_histogram<Measure::count>(draw, Path{});
  const unsigned pair = work.counts[2 * threadIdx.x] + work.counts[2 * threadIdx.x + 1];
  const Mass until = running_sum(pair, work);
  __syncthreads();
  if (threadIdx.x == kThreads - 1) work.until = until;
  __syncthreads();
  const Mass num_allowed = work.until;
  if (limits.top_k > 0 || num_allowed <= kListCapacity) {
    Limits narrowed = limits;
    narrowed.top_k = limits.top_k > 0 ? min(limits.top_k, num_allowed) : num_allowed;
    find_digit<Measure::count>(work, narrowed.top_k);
    const int last_bin = work.digit;
    if (work.before + work.digit_count <= kListCapacity) {
      collect(draw, [&](int id, float value) {
        return digit_of(0, draw.distance(value), value, id) <= last_bin;
      });
      return draw_from_list(draw, narrowed);
    }
  }
  return draw_from_all(draw, limits, num_allowed);
}

/// The drawn token when gather_best found all that may be kept.
__device__ int draw_from_best(const Draw& draw, const Limits& limits, const Key* best,
                              unsigned num_best) {
  draw.work.list[threadIdx.x] = threadIdx.x < num_best ? best[threadIdx.x] : ~Key{0};
  if (threadIdx.x == 0) draw.work.list_size = num_best;
  sort_list(draw.work);
  Limits narrowed = limits;
  narrowed.top_k = min(limits.top_k, static_cast<Mass>(num_best));
  return draw_from_list(draw, narrowed);
}

// One block per row; rows that are not drawn have their token.
__global__ void __launch_bounds__(kThreads)
    choose_tokens(SampleArguments a, const SampleWorkspace* __restrict__ from, int num_parts) {
  __shared__ Workspace work;
  const int64_t row = blockIdx.x;
  const Summary summary = from->rows[row];
  if (!is_drawn(a, row, summary)) return;
  const float inverse_temperature = fminf(1.0F / a.temperature[row], 3e38F);
  const Limits limits = {static_cast<Mass>(max(a.top_k[row], 0)), a.top_p[row], a.min_p[row],
                         a.uniform[row]};
  const Draw draw{RowLogits(a, row), summary.best, inverse_temperature, work};
  const unsigned num_best = from->num_best[row];
  const bool is_listed = has_list(a, row, summary, num_parts) && num_best <= kMaxBest;
  const int id = is_listed ? draw_from_best(draw, limits, from->best[row], num_best)
                           : draw_token(draw, limits);
  if (threadIdx.x == 0) give_out(a, row, id, summary);
}

// ---- the most likely tokens ---------------------------------------------------------------------

// One block per row; as many passes as tokens are wanted (a few): each finds the best token after
// the one before.
__global__ void __launch_bounds__(kThreads) find_top_log_probs(TopLogProbsArguments a) {
  __shared__ Summary parts[kThreads / 32];
  __shared__ Summary winner;
  const float* logits = a.logits + blockIdx.x * a.logits_stride;
  float bound = INFINITY;
  int bound_id = -1;
  float log_sum = 0;
  for (int64_t place = 0; place < a.count; ++place) {
    Summary mine = {-INFINITY, 0.0F, -INFINITY, kNoToken};
    for (int id = static_cast<int>(threadIdx.x); id < a.vocab; id += kThreads) {
      const float logit = logits[id];
      if (is_better(bound, bound_id, logit, id) && is_better(logit, id, mine.best, mine.best_id)) {
        mine.best = logit;
        mine.best_id = id;
      }
      if (place != 0) continue;
      if (logit > mine.largest) {
        mine.sum *= expf(mine.largest - logit);
        mine.largest = logit;
      }
      if (logit > -INFINITY) mine.sum += expf(logit - mine.largest);
    }
    mine = combine_warp(mine);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x < 32) {
      const Summary all = combine_warp(parts[threadIdx.x]);
      if (threadIdx.x == 0) winner = all;
    }
    __syncthreads();
    bound = winner.best;
    bound_id = winner.best_id;
    if (place == 0) log_sum = winner.largest + logf(winner.sum);
    if (threadIdx.x == 0) {
      a.ids[blockIdx.x * a.ids_stride + place] = bound_id;
      a.log_probs[blockIdx.x * a.log_probs_stride + place] = bound - log_sum;
    }
    __syncthreads();  // parts and winner are written again
  }
}

// One thread per row.
__global__ void __launch_bounds__(128) count_tokens(CountTokensArguments a) {
  const int64_t row = int64_t{blockIdx.x} * 128 + threadIdx.x;
  if (row >= a.rows || a.line[row] < 0) return;
  uint16_t& count = a.counts[a.line[row] * a.counts_stride + a.ids[row]];
  if ((count & 0x7FFFU) != 0x7FFFU) count = static_cast<uint16_t>(count + 1);
}

}  // namespace

int64_t sampling_workspace_bytes() {
  return static_cast<int64_t>(sizeof(SampleWorkspace));
}

cudaError_t launch_sample(const SampleArguments& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  if (a.rows > kMaxSamplingRows || a.vocab > INT32_MAX / 2) return cudaErrorInvalidValue;
  const auto rows = static_cast<unsigned>(a.rows);
  constexpr int kLogitsOfBlock = kSummaryThreads * kSummaryLoads;
  const auto parts = std::min(divide_up(a.vocab, kLogitsOfBlock), unsigned{kMaxParts});
  auto* work = static_cast<SampleWorkspace*>(a.workspace);
  const bool packs = a.vocab % 4 == 0 && a.logits_stride % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(a.logits) % 16 == 0;
  const dim3 grid(parts, rows);
  const auto summarize = packs ? summarize_logits<4> : summarize_logits<1>;
  summarize<<<grid, kSummaryThreads, 0, stream>>>(a, work);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || a.all_greedy) return error;
  const auto gather = packs ? gather_best<4> : gather_best<1>;
  gather<<<grid, kSummaryThreads, 0, stream>>>(a, work);
  choose_tokens<<<rows, kThreads, 0, stream>>>(a, work, static_cast<int>(parts));
  return cudaGetLastError();
}

cudaError_t launch_top_log_probs(const TopLogProbsArguments& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  find_top_log_probs<<<static_cast<unsigned>(a.rows), kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

cudaError_t launch_count_tokens(const CountTokensArguments& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  count_tokens<<<divide_up(a.rows, 128), 128, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace glimpse::cuda
