// From logits to tokens: sorts everything, keeps the order of the specification.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/elements.h"
#include "cpu/reference_backend.h"

namespace glimpse {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr uint16_t kInPrompt = 0x8000;

/// Ids by falling logit, then rising id; only the first `count` are in order.
std::vector<int32_t> best_ids(std::span<const float> logits, size_t count) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto better = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(count), ids.end(), better);
  return ids;
}

void penalise(std::span<float> logits, const uint16_t* counts, float repetition, float presence,
              float frequency) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (counts[i] == 0) continue;
    float& logit = logits[i];
    if (repetition != 1.0F) logit = logit < 0 ? logit * repetition : logit / repetition;
    const auto generated = static_cast<float>(counts[i] & ~kInPrompt);
    if (generated > 0) logit -= presence + frequency * generated;
  }
}

/// The ids that top-k keeps, in order: ties with the last one are kept. 0 keeps all.
std::vector<int32_t> kept_ids(std::span<const float> logits, int32_t top_k) {
  const size_t count = logits.size();
  if (top_k <= 0 || static_cast<size_t>(top_k) >= count) return best_ids(logits, count);
  std::vector<int32_t> ids = best_ids(logits, static_cast<size_t>(top_k));
  ids.resize(static_cast<size_t>(top_k));
  const int32_t last = ids.back();
  const float least = logits[static_cast<size_t>(last)];
  for (size_t id = static_cast<size_t>(last) + 1; id < count; ++id) {
    if (logits[id] == least) ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

/// What is left of the best tokens after top-k, top-p and min-p, and the draw among them.
int32_t draw(std::span<const float> logits, float temperature, int32_t top_k, float top_p,
             float min_p, float uniform) {
  const std::vector<int32_t> ids = kept_ids(logits, top_k);
  const auto logit = [&](size_t rank) { return logits[static_cast<size_t>(ids[rank])]; };
  size_t kept = ids.size();
  std::vector<double> weights(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) {
    weights[i] = std::exp((static_cast<double>(logit(i)) - logit(0)) / temperature);
    total += weights[i];
  }
  if (top_p < 1.0F) {
    double mass = 0;
    size_t count = 0;
    while (count < kept && (count == 0 || mass < top_p * total)) mass += weights[count++];
    kept = count;
  }
  if (min_p > 0.0F) {
    while (kept > 1 && weights[kept - 1] < min_p * weights[0]) --kept;
  }
  total = std::accumulate(weights.begin(), weights.begin() + static_cast<int64_t>(kept), 0.0);
  double cumulative = 0;
  for (size_t i = 0; i < kept; ++i) {
    cumulative += weights[i];
    if (cumulative > uniform * total) return ids[i];
  }
  return ids[kept - 1];
}

}  // namespace

float ReferenceBackend::log_sum_exp(std::span<const float> logits) const {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + static_cast<float>(std::log(sum));
}

void ReferenceBackend::do_sample(Tensor logits, const SamplingRows& rows, Tensor ids,
                                 Tensor log_probs, Tensor reported_ids) {
  const auto vocabulary = static_cast<size_t>(logits.size(1));
  for (int64_t i = 0; i < logits.size(0); ++i) {
    const std::span<const float> given(row_of<float>(logits, i), vocabulary);
    std::vector<float> row(given.begin(), given.end());
    const float temperature = rows.temperature.data<float>()[i];
    const int32_t counts_row = rows.counts_row.data<int32_t>()[i];
    if (counts_row >= 0) {
      penalise(row, row_of<uint16_t>(rows.token_counts, counts_row),
               rows.repetition_penalty.data<float>()[i], rows.presence_penalty.data<float>()[i],
               rows.frequency_penalty.data<float>()[i]);
    }
    const int32_t mask_row = rows.mask_row.data<int32_t>()[i];
    if (mask_row >= 0) {
      const uint32_t* mask = row_of<uint32_t>(rows.allowed, mask_row);
      for (size_t t = 0; t < vocabulary; ++t) {
        if ((mask[t / 32] >> (t % 32) & 1U) == 0) row[t] = kNever;
      }
    }
    const int32_t id =
        temperature <= 0.0F
            ? static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin())
            : draw(row, temperature, rows.top_k.data<int32_t>()[i], rows.top_p.data<float>()[i],
                   rows.min_p.data<float>()[i], rows.uniform.data<float>()[i]);
    ids.data<int32_t>()[i] = id;
    if (!reported_ids.empty()) reported_ids.data<int32_t>()[i] = id;
    log_probs.data<float>()[i] = given[static_cast<size_t>(id)] - log_sum_exp(given);
  }
}

void ReferenceBackend::do_top_log_probs(Tensor logits, Tensor ids, Tensor log_probs) {
  const auto count = static_cast<size_t>(ids.size(1));
  for (int64_t i = 0; i < logits.size(0); ++i) {
    const std::span<const float> row(row_of<float>(logits, i), static_cast<size_t>(logits.size(1)));
    const std::vector<int32_t> best = best_ids(row, count);
    const float normaliser = log_sum_exp(row);
    for (size_t j = 0; j < count; ++j) {
      row_of<int32_t>(ids, i)[j] = best[j];
      row_of<float>(log_probs, i)[j] = row[static_cast<size_t>(best[j])] - normaliser;
    }
  }
}

void ReferenceBackend::do_count_tokens(Tensor ids, Tensor line, Tensor counts) {
  for (int64_t i = 0; i < ids.size(0); ++i) {
    const int32_t to = line.data<int32_t>()[i];
    if (to < 0) continue;
    const int32_t id = ids.data<int32_t>()[i];
    check(to < counts.size(0) && id >= 0 && id < counts.size(1),
          "count_tokens: outside the counts");
    uint16_t& count = row_of<uint16_t>(counts, to)[id];
    if ((count & ~kInPrompt) != 0x7FFF) ++count;
  }
}

}  // namespace glimpse
