// Attention as products: the keys of a head are packed once as panels, the values as panels of
// their transpose, and blocks of queries are multiplied with them. Memory beyond the inputs is one
// head's keys and values and a block of scores, whatever the length. Few queries (decoding) read
// the pages of the cache as they lie, once for all query heads that share them.
#include <algorithm>
#include <cmath>
#include <functional>
#include <type_traits>
#include <vector>

#include "cpu/aligned_vector.h"
#include "cpu/elements.h"
#include "cpu/fast_backend.h"
#include "cpu/kernels.h"

namespace glimpse {
namespace {

using cpu::kPanelRows;

// Scores kept at once per thread, in floats: half a megabyte, inside L2.
constexpr int64_t kScoreFloats = 128 * 1024;
constexpr int64_t kMinQueryRows = 12;  // multiples of the six rows that a panel meets at once
constexpr int64_t kMaxQueryRows = 48;
// Tokens whose values stay in L2 while a block of queries passes by.
constexpr int64_t kValueTokens = 512;
// Queries up to which packing keys and values costs more than it saves.
constexpr int64_t kFewQueries = 2;

int64_t panels(int64_t count) {
  return (count + kPanelRows - 1) / kPanelRows;
}

template <typename From, typename To>
void convert_row(const From* from, int64_t count, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::copy_n(from, count, to);
  } else if constexpr (std::is_same_v<To, float>) {
    cpu::widen_row(from, nullptr, count, to);
  } else {
    cpu::narrow_row(from, count, to);
  }
}

/// Keys and values of one head of one sequence, as the products want them, and what the products
/// of a block of queries leave. T is what is multiplied: float or BFloat16.
template <typename T>
struct Scratch {
  int64_t length = 0;
  int64_t dim = 0;
  AlignedVector<T> keys;        // [panels(length)] panels of [dim, kPanelRows]
  AlignedVector<T> values;      // [panels(dim)] panels of [length, kPanelRows]
  AlignedVector<T> staged;      // [2, kPanelRows, dim]: rows on their way into panels
  AlignedVector<T> queries;     // [block, dim]
  AlignedVector<float> scores;  // [block, panels(length) * kPanelRows]
  AlignedVector<T> weights;     // the same, where T is not float
  AlignedVector<float> sums;    // [block, panels(dim) * kPanelRows]

  void resize(int64_t new_length, int64_t new_dim) {
    length = new_length;
    dim = new_dim;
    const int64_t even = (length + 1) / 2 * 2;  // panels of bf16 hold pairs
    keys.resize(static_cast<size_t>(panels(length) * (dim + 1) / 2 * 2 * kPanelRows));
    values.resize(static_cast<size_t>(panels(dim) * even * kPanelRows));
    staged.resize(static_cast<size_t>(2 * kPanelRows * dim));
  }
  [[nodiscard]] T* key_panel(int64_t index) {
    return keys.data() + index * ((dim + 1) / 2 * 2) * kPanelRows;
  }
  [[nodiscard]] T* value_panel(int64_t index) {
    return values.data() + index * ((length + 1) / 2 * 2) * kPanelRows;
  }
  /// Packs `count` tokens from a multiple of kPanelRows on.
  void set(int64_t first, int64_t count, const T* key_rows, const T* value_rows, int64_t stride) {
    cpu::pack_panel(key_rows, stride, count, dim, key_panel(first / kPanelRows));
    for (int64_t j = 0; j < panels(dim); ++j) {
      const int64_t columns = std::min(kPanelRows, dim - j * kPanelRows);
      cpu::pack_columns(value_rows + j * kPanelRows, stride, count, columns,
                        value_panel(j) + first * kPanelRows);
    }
  }
};

// A thread keeps its memory from one loop to the next.
template <typename T>
Scratch<T>& thread_scratch() {
  thread_local Scratch<T> scratch;
  return scratch;
}

/// Scores of `count` queries, their softmax over the first `visible(i)` keys, and the mix of
/// values.
template <typename T>
void attend_block(Scratch<T>& s, int64_t count, int64_t stride,
                  const std::function<int64_t(int64_t)>& visible) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(s.dim));
  const int64_t length = visible(count - 1);  // the last query of a block sees most
  for (int64_t p = 0; p < panels(length); ++p) {
    cpu::multiply_panel(s.queries.data(), s.dim, count, s.key_panel(p), s.dim,
                        {.sums = s.scores.data() + p * kPanelRows, .stride = stride});
  }
  for (int64_t i = 0; i < count; ++i) {
    cpu::softmax(s.scores.data() + i * stride, visible(i), length, scale);
  }
  const T* weights = nullptr;
  if constexpr (std::is_same_v<T, float>) {
    weights = s.scores.data();
  } else {
    for (int64_t i = 0; i < count; ++i) {
      cpu::narrow_row(s.scores.data() + i * stride, length, s.weights.data() + i * stride);
    }
    weights = s.weights.data();
  }
  const int64_t sums_stride = panels(s.dim) * kPanelRows;
  for (int64_t first = 0; first < length; first += kValueTokens) {
    const int64_t tokens = std::min(kValueTokens, length - first);
    for (int64_t j = 0; j < panels(s.dim); ++j) {
      cpu::multiply_panel(weights + first, stride, count, s.value_panel(j) + first * kPanelRows,
                          tokens,
                          {.sums = s.sums.data() + j * kPanelRows,
                           .stride = sums_stride,
                           .count = std::min(kPanelRows, s.dim - j * kPanelRows),
                           .first = first == 0});
    }
  }
}

/// `visible(i)` keys count for query i. `read` and `write` move query i in and out.
template <typename T, typename Visible, typename Read, typename Write>
void attend_rows(Scratch<T>& s, int64_t num_queries, const Visible& visible, const Read& read,
                 const Write& write) {
  const int64_t stride = panels(s.length) * kPanelRows;
  const int64_t sums_stride = panels(s.dim) * kPanelRows;
  const int64_t block = std::clamp(kScoreFloats / stride / 6 * 6, kMinQueryRows, kMaxQueryRows);
  s.queries.resize(static_cast<size_t>(block * s.dim));
  s.scores.resize(static_cast<size_t>(block * stride));
  s.sums.resize(static_cast<size_t>(block * sums_stride));
  if (!std::is_same_v<T, float>) s.weights.resize(s.scores.size());
  for (int64_t first = 0; first < num_queries; first += block) {
    const int64_t count = std::min(block, num_queries - first);
    for (int64_t i = 0; i < count; ++i) read(first + i, s.queries.data() + i * s.dim);
    attend_block<T>(s, count, stride, [&](int64_t i) { return visible(first + i); });
    for (int64_t i = 0; i < count; ++i) write(first + i, s.sums.data() + i * sums_stride);
  }
}

/// Entries of a sequence's keys in the cache, head by head.
struct PagedHead {
  const PagedKv& kv;
  const int32_t* pages;
  int64_t kv_head;

  /// The first token of a page: its tokens follow one another.
  [[nodiscard]] int64_t entry(int64_t page_index) const {
    const int64_t page = pages[page_index];
    check(page >= 0 && page < kv.keys.size(0), "a KV page is outside the cache");
    return (page * kv.keys.size(1) + kv_head) * kKvPageTokens;
  }
};

// Rows of a page as T. FP8 has a factor of its own for each token.
template <typename C, typename T>
void read_rows(const Tensor& cache, const Tensor& scales, int64_t entry, int64_t count, int64_t dim,
               T* out) {
  const C* from = cache.data<C>() + entry * dim;
  if constexpr (!std::is_same_v<C, Float8E4M3>) {
    convert_row(from, count * dim, out);
  } else {
    std::vector<float> row(static_cast<size_t>(dim));
    std::vector<float> factors(static_cast<size_t>((dim + kScaleBlock - 1) / kScaleBlock));
    for (int64_t i = 0; i < count; ++i) {
      std::fill(factors.begin(), factors.end(), scales.data<float>()[entry + i]);
      cpu::widen_row(from + i * dim, factors.data(), dim, row.data());
      convert_row(row.data(), dim, out + i * dim);
    }
  }
}

// The cache of one head into panels.
template <typename C, typename T>
void pack_pages(const PagedHead& head, int64_t context, int64_t dim, Scratch<T>& s) {
  s.resize(context, dim);
  T* keys = s.staged.data();
  T* values = keys + kPanelRows * dim;
  for (int64_t first = 0; first < context; first += kPanelRows) {
    const int64_t end = std::min(context, first + kPanelRows);
    for (int64_t token = first; token < end; token += kKvPageTokens) {
      const int64_t entry = head.entry(token / kKvPageTokens);
      const int64_t count = std::min(kKvPageTokens, end - token);
      read_rows<C>(head.kv.keys, head.kv.key_scales, entry, count, dim,
                   keys + (token - first) * dim);
      read_rows<C>(head.kv.values, head.kv.value_scales, entry, count, dim,
                   values + (token - first) * dim);
    }
    s.set(first, end - first, keys, values, dim);
  }
}

// One query of all heads that share a head of the cache, page by page.
template <typename C>
void decode_heads(const PagedHead& head, int64_t context, int64_t dim, int64_t num_queries,
                  Scratch<float>& s) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  const bool is_scaled = std::is_same_v<C, Float8E4M3>;
  const int64_t stride = (context + kPanelRows - 1) / kPanelRows * kPanelRows;
  s.scores.resize(static_cast<size_t>(num_queries * stride));
  s.sums.assign(static_cast<size_t>(num_queries * dim), 0.0F);
  for (int64_t first = 0; first < context; first += kKvPageTokens) {
    const int64_t entry = head.entry(first / kKvPageTokens);
    const C* keys = head.kv.keys.data<C>() + entry * dim;
    for (int64_t i = 0; i < std::min(kKvPageTokens, context - first); ++i) {
      const float factor = is_scaled ? head.kv.key_scales.data<float>()[entry + i] : 1.0F;
      for (int64_t q = 0; q < num_queries; q += 4) {
        float scores[4];
        const int64_t count = std::min<int64_t>(4, num_queries - q);
        cpu::multiply_row(s.queries.data() + q * dim, dim, count, keys + i * dim, nullptr, dim,
                          scores);
        for (int64_t j = 0; j < count; ++j) {
          s.scores[static_cast<size_t>((q + j) * stride + first + i)] = scores[j] * factor;
        }
      }
    }
  }
  for (int64_t q = 0; q < num_queries; ++q) {
    cpu::softmax(s.scores.data() + q * stride, context, context, scale);
  }
  for (int64_t first = 0; first < context; first += kKvPageTokens) {
    const int64_t entry = head.entry(first / kKvPageTokens);
    const int64_t count = std::min(kKvPageTokens, context - first);
    for (int64_t i = 0; is_scaled && i < count; ++i) {
      const float factor = head.kv.value_scales.data<float>()[entry + i];
      for (int64_t q = 0; q < num_queries; ++q) {
        s.scores[static_cast<size_t>(q * stride + first + i)] *= factor;
      }
    }
    cpu::mix_rows(s.scores.data() + first, stride, num_queries,
                  head.kv.values.data<C>() + entry * dim, count, dim, s.sums.data());
  }
}

// Attention inside each segment; A is the activations' type, T what is multiplied.
template <typename A, typename T>
void attend_segments(ThreadPool& pool, const Tensor& q, const Tensor& k, const Tensor& v,
                     std::span<const int64_t> segment_begin, const Tensor& out) {
  const int64_t heads = q.size(1);
  const int64_t dim = q.size(2);
  const auto segments = static_cast<int64_t>(segment_begin.size()) - 1;
  pool.parallel_for(segments * heads, 1, [&](int64_t first_item, int64_t last_item) {
    Scratch<T>& s = thread_scratch<T>();
    for (int64_t item = first_item; item < last_item; ++item) {
      const int64_t begin = segment_begin[static_cast<size_t>(item / heads)];
      const int64_t length = segment_begin[static_cast<size_t>(item / heads) + 1] - begin;
      const int64_t h = item % heads;
      if (length == 0) continue;
      const auto row = [&](const Tensor& x, int64_t i) {
        return row_of<A>(x, (begin + i) * heads + h);
      };
      s.resize(length, dim);
      T* keys = s.staged.data();
      T* values = keys + kPanelRows * dim;
      for (int64_t first = 0; first < length; first += kPanelRows) {
        const int64_t count = std::min(kPanelRows, length - first);
        for (int64_t i = 0; i < count; ++i) {
          convert_row(row(k, first + i), dim, keys + i * dim);
          convert_row(row(v, first + i), dim, values + i * dim);
        }
        s.set(first, count, keys, values, dim);
      }
      attend_rows(
          s, length, [&](int64_t) { return length; },
          [&](int64_t i, T* to) { convert_row(row(q, i), dim, to); },
          [&](int64_t i, const float* from) { convert_row(from, dim, row(out, i)); });
    }
  });
}

/// What attention over one head of the cache needs to know of the batch.
struct PagedBatch {
  const Tensor& q;
  const PagedKv& kv;
  const PagedSpans& spans;
  const Tensor& out;
};

// All queries of one sequence over one head of the cache.
template <typename A, typename T, typename C>
void attend_kv_head(const PagedBatch& batch, int64_t sequence, int64_t kv_head) {
  const int64_t heads = batch.q.size(1);
  const int64_t dim = batch.q.size(2);
  const int64_t group = heads / batch.kv.keys.size(1);
  const int32_t* begin = batch.spans.query_begin.data<int32_t>() + sequence;
  const int64_t queries = begin[1] - begin[0];
  const int64_t context = batch.spans.context_length.data<int32_t>()[sequence];
  const PagedHead head{batch.kv, row_of<int32_t>(batch.spans.page_table, sequence), kv_head};
  const auto row = [&](const Tensor& x, int64_t query, int64_t in_group) {
    return row_of<A>(x, (begin[0] + query) * heads + kv_head * group + in_group);
  };
  if (queries <= kFewQueries) {
    Scratch<float>& s = thread_scratch<float>();
    s.queries.resize(static_cast<size_t>(group * dim));
    for (int64_t i = 0; i < queries; ++i) {
      for (int64_t g = 0; g < group; ++g) {
        convert_row(row(batch.q, i, g), dim, s.queries.data() + g * dim);
      }
      decode_heads<C>(head, context - queries + i + 1, dim, group, s);
      for (int64_t g = 0; g < group; ++g) {
        convert_row<float>(s.sums.data() + g * dim, dim, row(batch.out, i, g));
      }
    }
    return;
  }
  Scratch<T>& s = thread_scratch<T>();
  pack_pages<C>(head, context, dim, s);
  for (int64_t g = 0; g < group; ++g) {
    attend_rows(
        s, queries, [&](int64_t i) { return context - queries + i + 1; },
        [&](int64_t i, T* to) { convert_row(row(batch.q, i, g), dim, to); },
        [&](int64_t i, const float* from) { convert_row(from, dim, row(batch.out, i, g)); });
  }
}

}  // namespace

void FastCpuBackend::do_attend_packed(Tensor q, Tensor k, Tensor v,
                                      std::span<const int64_t> segment_begin, Tensor out) {
  if (q.dtype() == DType::f32) {
    attend_segments<float, float>(pool_, q, k, v, segment_begin, out);
  } else if (cpu::has_bf16_dot()) {
    attend_segments<BFloat16, BFloat16>(pool_, q, k, v, segment_begin, out);
  } else {
    attend_segments<BFloat16, float>(pool_, q, k, v, segment_begin, out);
  }
}

void FastCpuBackend::do_attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans,
                                     Tensor out) {
  const int64_t kv_heads = kv.keys.size(1);
  const int64_t sequences = spans.context_length.size(0);
  const PagedBatch batch{q, kv, spans, out};
  dispatch_cache(kv.keys.dtype(), [&]<typename C>() {
    pool_.parallel_for(sequences * kv_heads, 1, [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; ++item) {
        const int64_t sequence = item / kv_heads;
        const int64_t kv_head = item % kv_heads;
        if (q.dtype() == DType::f32) {
          attend_kv_head<float, float, C>(batch, sequence, kv_head);
        } else if (cpu::has_bf16_dot()) {
          attend_kv_head<BFloat16, BFloat16, C>(batch, sequence, kv_head);
        } else {
          attend_kv_head<BFloat16, float, C>(batch, sequence, kv_head);
        }
      }
    });
  });
}

}  // namespace glimpse
