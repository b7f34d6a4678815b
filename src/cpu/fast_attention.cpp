// Attention as products: for each head the keys are gathered once as rows and the values as
// columns, and blocks of queries are multiplied with them. Memory beyond the inputs is one head's
// keys and values and a block of scores, whatever the length. A single query (decoding) reads the
// pages as they are.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/elements.h"
#include "cpu/fast_backend.h"
#include "cpu/kernels.h"

namespace glimpse {
namespace {

// Scores kept at once per thread, in floats: half a megabyte, inside L2.
constexpr int64_t kScoreFloats = 128 * 1024;
constexpr int64_t kMaxQueryRows = 32;

int64_t padded(int64_t count) {
  return (count + 31) / 32 * 32;
}

template <typename T>
void widen_head(const T* row, int64_t dim, float* out) {
  cpu::widen_row(row, nullptr, dim, out);
}

/// Keys and values of one head of one sequence, as the products want them.
struct Head {
  int64_t length = 0;
  int64_t dim = 0;
  std::vector<float> keys;       // [length, dim]
  std::vector<float> values;     // [dim, padded(length)]
  std::vector<BFloat16> keys16;  // the same rounded to bf16, where products of bf16 are quick
  std::vector<BFloat16> values16;

  void resize(int64_t new_length, int64_t new_dim) {
    length = new_length;
    dim = new_dim;
    keys.resize(static_cast<size_t>(length * dim));
    values.assign(static_cast<size_t>(dim * padded(length)), 0.0F);
  }
  void set(int64_t token, const float* key, const float* value) {
    std::copy_n(key, dim, keys.data() + token * dim);
    for (int64_t i = 0; i < dim; ++i) {
      values[static_cast<size_t>(i * padded(length) + token)] = value[i];
    }
  }
  void narrow() {
    keys16.resize(keys.size());
    values16.resize(values.size());
    cpu::narrow_row(keys.data(), static_cast<int64_t>(keys.size()), keys16.data());
    cpu::narrow_row(values.data(), static_cast<int64_t>(values.size()), values16.data());
  }
};

struct Scratch {
  Head head;
  std::vector<float> queries;
  std::vector<BFloat16> queries16;
  std::vector<float> scores;
  std::vector<BFloat16> weights16;
  std::vector<float> sums;
};

/// `visible(i)` keys count for query i. `read` and `write` move query i in and out as floats.
template <typename Visible, typename Read, typename Write>
void attend_rows(Scratch& s, int64_t num_queries, bool bf16, const Visible& visible,
                 const Read& read, const Write& write) {
  const int64_t dim = s.head.dim;
  const int64_t stride = padded(s.head.length);
  const int64_t block = std::clamp<int64_t>(kScoreFloats / stride, 1, kMaxQueryRows);
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  s.queries.resize(static_cast<size_t>(block * dim));
  s.scores.resize(static_cast<size_t>(block * stride));
  s.sums.resize(static_cast<size_t>(block * dim));
  if (bf16) {
    s.queries16.resize(s.queries.size());
    s.weights16.resize(s.scores.size());
  }
  for (int64_t first = 0; first < num_queries; first += block) {
    const int64_t count = std::min(block, num_queries - first);
    const int64_t length = visible(first + count - 1);  // the last query of a block sees most
    for (int64_t i = 0; i < count; ++i) read(first + i, s.queries.data() + i * dim);
    if (bf16) {
      cpu::narrow_row(s.queries.data(), count * dim, s.queries16.data());
      cpu::multiply_bf16(s.queries16.data(), dim, count, s.head.keys16.data(), dim, length, dim,
                         s.scores.data(), stride);
    } else {
      cpu::multiply_f32(s.queries.data(), dim, count, s.head.keys.data(), dim, length, dim,
                        s.scores.data(), stride);
    }
    for (int64_t i = 0; i < count; ++i) {
      cpu::softmax(s.scores.data() + i * stride, visible(first + i), length, scale);
    }
    if (bf16) {
      for (int64_t i = 0; i < count; ++i) {
        cpu::narrow_row(s.scores.data() + i * stride, length, s.weights16.data() + i * stride);
      }
      cpu::multiply_bf16(s.weights16.data(), stride, count, s.head.values16.data(), stride, dim,
                         length, s.sums.data(), dim);
    } else {
      cpu::multiply_f32(s.scores.data(), stride, count, s.head.values.data(), stride, dim, length,
                        s.sums.data(), dim);
    }
    for (int64_t i = 0; i < count; ++i) write(first + i, s.sums.data() + i * dim);
  }
}

template <typename T>
void write_head(const float* from, int64_t dim, T* to) {
  if constexpr (std::is_same_v<T, float>) {
    std::copy_n(from, dim, to);
  } else {
    cpu::narrow_row(from, dim, to);
  }
}

template <typename Body>
void dispatch_cache(DType dtype, Body&& body) {
  if (dtype == DType::f8_e4m3) return body.template operator()<Float8E4M3>();
  dispatch_activation(dtype, body);
}

/// Entries of a sequence's keys in the cache, head by head.
struct PagedHead {
  const PagedKv& kv;
  const int32_t* pages;
  int64_t kv_head;

  [[nodiscard]] int64_t entry(int64_t token) const {
    const int64_t page = pages[token / kKvPageTokens];
    check(page >= 0 && page < kv.keys.size(0), "a KV page is outside the cache");
    return (page * kv.keys.size(1) + kv_head) * kKvPageTokens + token % kKvPageTokens;
  }
  template <typename C>
  void read(const Tensor& cache, const Tensor& scales, int64_t token, int64_t dim,
            float* out) const {
    const int64_t at = entry(token);
    if constexpr (std::is_same_v<C, Float8E4M3>) {
      cpu::widen_row(cache.data<C>() + at * dim, scales.data<float>() + at, dim, out);
    } else {
      widen_head(cache.data<C>() + at * dim, dim, out);
    }
  }
};

// One query after another over the pages as they lie.
template <typename T, typename C>
void decode_head(const PagedHead& head, int64_t context, int64_t dim, const T* query, T* out,
                 Scratch& s) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  s.queries.resize(static_cast<size_t>(dim));
  s.sums.assign(static_cast<size_t>(dim), 0.0F);
  s.scores.resize(static_cast<size_t>(context));
  std::vector<float>& row = s.head.keys;
  row.resize(static_cast<size_t>(dim));
  widen_head(query, dim, s.queries.data());
  for (int64_t token = 0; token < context; ++token) {
    head.read<C>(head.kv.keys, head.kv.key_scales, token, dim, row.data());
    s.scores[static_cast<size_t>(token)] = cpu::dot(s.queries.data(), row.data(), dim);
  }
  cpu::softmax(s.scores.data(), context, context, scale);
  for (int64_t token = 0; token < context; ++token) {
    head.read<C>(head.kv.values, head.kv.value_scales, token, dim, row.data());
    cpu::add_scaled(row.data(), s.scores[static_cast<size_t>(token)], dim, s.sums.data());
  }
  write_head(s.sums.data(), dim, out);
}

}  // namespace

void FastCpuBackend::do_attend_packed(Tensor q, Tensor k, Tensor v,
                                      std::span<const int64_t> segment_begin, Tensor out) {
  const int64_t heads = q.size(1);
  const int64_t dim = q.size(2);
  const auto segments = static_cast<int64_t>(segment_begin.size()) - 1;
  const bool bf16 = q.dtype() == DType::bf16 && cpu::has_bf16_dot();
  dispatch_activation(q.dtype(), [&]<typename T>() {
    pool_.parallel_for(segments * heads, 1, [&](int64_t first, int64_t last) {
      Scratch s;
      std::vector<float> key(static_cast<size_t>(dim));
      std::vector<float> value(static_cast<size_t>(dim));
      for (int64_t item = first; item < last; ++item) {
        const int64_t begin = segment_begin[static_cast<size_t>(item / heads)];
        const int64_t length = segment_begin[static_cast<size_t>(item / heads) + 1] - begin;
        const int64_t h = item % heads;
        if (length == 0) continue;
        const auto row = [&](const Tensor& x, int64_t i) {
          return row_of<T>(x, (begin + i) * heads + h);
        };
        s.head.resize(length, dim);
        for (int64_t i = 0; i < length; ++i) {
          widen_head(row(k, i), dim, key.data());
          widen_head(row(v, i), dim, value.data());
          s.head.set(i, key.data(), value.data());
        }
        if (bf16) s.head.narrow();
        attend_rows(
            s, length, bf16, [&](int64_t) { return length; },
            [&](int64_t i, float* to) { widen_head(row(q, i), dim, to); },
            [&](int64_t i, const float* from) { write_head(from, dim, row(out, i)); });
      }
    });
  });
}

void FastCpuBackend::do_attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans,
                                     Tensor out) {
  const int64_t heads = q.size(1);
  const int64_t dim = q.size(2);
  const int64_t kv_heads = kv.keys.size(1);
  const int64_t group = heads / kv_heads;
  const int64_t sequences = spans.context_length.size(0);
  const int32_t* begin = spans.query_begin.data<int32_t>();
  const bool bf16 = q.dtype() == DType::bf16 && cpu::has_bf16_dot();
  constexpr int64_t kFewQueries = 2;
  const auto attend_kv_head = [&]<typename T, typename C>(int64_t item, Scratch& s) {
    const int64_t sequence = item / kv_heads;
    const PagedHead head{kv, row_of<int32_t>(spans.page_table, sequence), item % kv_heads};
    const int64_t context = spans.context_length.data<int32_t>()[sequence];
    const int64_t queries = begin[sequence + 1] - begin[sequence];
    const auto row = [&](const Tensor& x, int64_t query, int64_t in_group) {
      return row_of<T>(x, (begin[sequence] + query) * heads + head.kv_head * group + in_group);
    };
    if (queries <= kFewQueries) {
      for (int64_t i = 0; i < queries * group; ++i) {
        decode_head<T, C>(head, context - queries + i / group + 1, dim,
                          row(q, i / group, i % group), row(out, i / group, i % group), s);
      }
      return;
    }
    s.head.resize(context, dim);
    std::vector<float> key(static_cast<size_t>(dim));
    std::vector<float> value(static_cast<size_t>(dim));
    for (int64_t token = 0; token < context; ++token) {
      head.read<C>(kv.keys, kv.key_scales, token, dim, key.data());
      head.read<C>(kv.values, kv.value_scales, token, dim, value.data());
      s.head.set(token, key.data(), value.data());
    }
    if (bf16) s.head.narrow();
    for (int64_t g = 0; g < group; ++g) {
      attend_rows(
          s, queries, bf16, [&](int64_t i) { return context - queries + i + 1; },
          [&](int64_t i, float* to) { widen_head(row(q, i, g), dim, to); },
          [&](int64_t i, const float* from) { write_head(from, dim, row(out, i, g)); });
    }
  };
  dispatch_activation(q.dtype(), [&]<typename T>() {
    dispatch_cache(kv.keys.dtype(), [&]<typename C>() {
      pool_.parallel_for(sequences * kv_heads, 1, [&](int64_t first, int64_t last) {
        Scratch s;
        for (int64_t item = first; item < last; ++item) {
          attend_kv_head.template operator()<T, C>(item, s);
        }
      });
    });
  });
}

}  // namespace glimpse
