// Attention over paged keys and inside packed segments, scores of one query at a time.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/elements.h"
#include "cpu/reference_backend.h"

namespace glimpse {
namespace {

/// softmax(scores) in place; returns nothing that can overflow.
void softmax(std::span<float> scores) {
  const float largest = *std::max_element(scores.begin(), scores.end());
  float sum = 0;
  for (float& score : scores) {
    score = std::exp(score - largest);
    sum += score;
  }
  for (float& score : scores) score /= sum;
}

int64_t cache_entry(const PagedKv& kv, int64_t page, int64_t head, int64_t offset) {
  check(page >= 0 && page < kv.keys.size(0), "a KV page is outside the cache");
  return (page * kv.keys.size(1) + head) * kKvPageTokens + offset;
}

template <typename C>
float scale_of(const Tensor& scales, int64_t entry) {
  if constexpr (std::is_same_v<C, Float8E4M3>) return scales.data<float>()[entry];
  return 1.0F;
}

template <typename T, typename C>
void store_head(const T* from, int64_t dim, const Tensor& cache, const Tensor& scales,
                int64_t entry) {
  C* to = cache.data<C>() + entry * dim;
  if constexpr (std::is_same_v<C, Float8E4M3>) {
    float largest = 0;
    for (int64_t i = 0; i < dim; ++i) largest = std::max(largest, std::fabs(to_float(from[i])));
    const float scale = largest > 0 ? largest / 448.0F : 1.0F;
    scales.data<float>()[entry] = scale;
    for (int64_t i = 0; i < dim; ++i) to[i] = to_float8_e4m3(to_float(from[i]) / scale);
  } else {
    for (int64_t i = 0; i < dim; ++i) store(to_float(from[i]), to[i]);
  }
}

}  // namespace

void ReferenceBackend::do_store_kv(Tensor k, Tensor v, Tensor slots, const PagedKv& kv) {
  const int64_t heads = k.size(1);
  const int64_t dim = k.size(2);
  dispatch_activation(k.dtype(), [&]<typename T>() {
    dispatch_cache(kv.keys.dtype(), [&]<typename C>() {
      for (int64_t t = 0; t < k.size(0); ++t) {
        const int32_t slot = slots.data<int32_t>()[t];
        if (slot < 0) continue;
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t entry = cache_entry(kv, slot / kKvPageTokens, h, slot % kKvPageTokens);
          store_head<T, C>(row_of<T>(k, t * heads + h), dim, kv.keys, kv.key_scales, entry);
          store_head<T, C>(row_of<T>(v, t * heads + h), dim, kv.values, kv.value_scales, entry);
        }
      }
    });
  });
}

void ReferenceBackend::do_attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans,
                                       Tensor out) {
  const int64_t heads = q.size(1);
  const int64_t dim = q.size(2);
  const int64_t group = heads / kv.keys.size(1);
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  const int32_t* begin = spans.query_begin.data<int32_t>();
  std::vector<float> scores;
  std::vector<float> sums(static_cast<size_t>(dim));
  const auto attend = [&]<typename T, typename C>(int64_t row, int64_t head, int64_t visible,
                                                  const int32_t* pages) {
    const T* query = row_of<T>(q, row * heads + head);
    scores.assign(static_cast<size_t>(visible), 0.0F);
    std::fill(sums.begin(), sums.end(), 0.0F);
    const auto entry_of = [&](int64_t token) {
      return cache_entry(kv, pages[token / kKvPageTokens], head / group, token % kKvPageTokens);
    };
    for (int64_t token = 0; token < visible; ++token) {
      const int64_t entry = entry_of(token);
      const C* key = kv.keys.data<C>() + entry * dim;
      float sum = 0;
      for (int64_t i = 0; i < dim; ++i) sum += to_float(query[i]) * to_float(key[i]);
      scores[static_cast<size_t>(token)] = sum * scale_of<C>(kv.key_scales, entry) * scale;
    }
    softmax(scores);
    for (int64_t token = 0; token < visible; ++token) {
      const int64_t entry = entry_of(token);
      const C* value = kv.values.data<C>() + entry * dim;
      const float weight = scores[static_cast<size_t>(token)] * scale_of<C>(kv.value_scales, entry);
      for (int64_t i = 0; i < dim; ++i) sums[static_cast<size_t>(i)] += weight * to_float(value[i]);
    }
    T* to = row_of<T>(out, row * heads + head);
    for (int64_t i = 0; i < dim; ++i) store(sums[static_cast<size_t>(i)], to[i]);
  };
  dispatch_activation(q.dtype(), [&]<typename T>() {
    dispatch_cache(kv.keys.dtype(), [&]<typename C>() {
      for (int64_t s = 0; s < spans.context_length.size(0); ++s) {
        const int64_t context = spans.context_length.data<int32_t>()[s];
        const int64_t queries = begin[s + 1] - begin[s];
        const int32_t* pages = row_of<int32_t>(spans.page_table, s);
        for (int64_t j = 0; j < queries; ++j) {
          for (int64_t h = 0; h < heads; ++h) {
            attend.template operator()<T, C>(begin[s] + j, h, context - queries + j + 1, pages);
          }
        }
      }
    });
  });
}

void ReferenceBackend::do_attend_packed(Tensor q, Tensor k, Tensor v,
                                        std::span<const int64_t> segment_begin, Tensor out) {
  const int64_t heads = q.size(1);
  const int64_t dim = q.size(2);
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  std::vector<float> sums(static_cast<size_t>(dim));
  std::vector<float> scores;
  dispatch_activation(q.dtype(), [&]<typename T>() {
    for (size_t s = 0; s + 1 < segment_begin.size(); ++s) {
      const int64_t first = segment_begin[s];
      const int64_t last = segment_begin[s + 1];
      for (int64_t row = first; row < last; ++row) {
        for (int64_t h = 0; h < heads; ++h) {
          const T* query = row_of<T>(q, row * heads + h);
          scores.assign(static_cast<size_t>(last - first), 0.0F);
          std::fill(sums.begin(), sums.end(), 0.0F);
          for (int64_t other = first; other < last; ++other) {
            const T* key = row_of<T>(k, other * heads + h);
            float sum = 0;
            for (int64_t i = 0; i < dim; ++i) sum += to_float(query[i]) * to_float(key[i]);
            scores[static_cast<size_t>(other - first)] = sum * scale;
          }
          softmax(scores);
          for (int64_t other = first; other < last; ++other) {
            const T* value = row_of<T>(v, other * heads + h);
            const float weight = scores[static_cast<size_t>(other - first)];
            for (int64_t i = 0; i < dim; ++i) {
              sums[static_cast<size_t>(i)] += weight * to_float(value[i]);
            }
          }
          T* to = row_of<T>(out, row * heads + h);
          for (int64_t i = 0; i < dim; ++i) store(sums[static_cast<size_t>(i)], to[i]);
        }
      }
    }
  });
}

}  // namespace glimpse
