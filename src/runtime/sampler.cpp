#include "runtime/sampler.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "runtime/random.h"

namespace glimpse {
namespace {

constexpr uint16_t kInPrompt = 0x8000;
constexpr uint16_t kMaxCount = 0x7FFF;
constexpr int64_t kNumColumns = 10;

int64_t words_of_mask(int64_t vocab_size) {
  return (vocab_size + 31) / 32;
}

// The first elements of a buffer under another shape and, of the same width, dtype.
Tensor front(const Tensor& buffer, int64_t first, DType dtype,
             std::initializer_list<int64_t> shape) {
  const Tensor view(buffer.raw() + first * bytes_of(buffer.dtype()), dtype, buffer.device(), shape);
  check(first * bytes_of(buffer.dtype()) + view.num_bytes() <= buffer.num_bytes(),
        "a view leaves its buffer");
  return view;
}

template <typename T>
std::vector<T> downloaded(Backend& backend, const Tensor& from) {
  std::vector<T> values(static_cast<size_t>(from.num_elements()));
  backend.download(from, std::as_writable_bytes(std::span(values)));
  return values;
}

}  // namespace

SamplerBuffers SamplerBuffers::carve(int64_t vocab_size, int64_t max_rows, Arena& arena) {
  SamplerBuffers buffers;
  buffers.columns = arena.allocate(DType::i32, {kNumColumns * max_rows});
  buffers.token_counts = arena.allocate(DType::u16, {max_rows, vocab_size});
  buffers.allowed = arena.allocate(DType::u32, {max_rows, words_of_mask(vocab_size)});
  buffers.chosen = arena.allocate(DType::i32, {2 * max_rows});
  buffers.top_ids = arena.allocate(DType::i32, {max_rows * kMaxTopLogProbs});
  buffers.top_log_probs = arena.allocate(DType::f32, {max_rows * kMaxTopLogProbs});
  return buffers;
}

Sampler::Sampler(Backend& backend, int64_t vocab_size, int64_t max_rows, Arena& arena)
    : backend_(backend),
      vocab_size_(vocab_size),
      buffers_(SamplerBuffers::carve(vocab_size, max_rows, arena)) {}

void Sampler::start_line(int line, std::span<const TokenId> tokens, int64_t num_prompt_tokens) {
  std::vector<uint16_t> counts(static_cast<size_t>(vocab_size_));
  for (size_t i = 0; i < tokens.size(); ++i) {
    uint16_t& count = counts[static_cast<size_t>(tokens[i])];
    if (static_cast<int64_t>(i) < num_prompt_tokens) {
      count |= kInPrompt;
    } else if ((count & kMaxCount) < kMaxCount) {
      ++count;
    }
  }
  backend_.upload(std::as_bytes(std::span(counts)), buffers_.token_counts.slice(0, line, 1));
}

// All columns go up in one copy; which columns there are and where follows from the number of rows.
SamplingRows Sampler::upload_rows(std::span<const SamplingRow> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  staging_.clear();
  mask_staging_.clear();
  const auto add_column = [&](DType dtype, const auto& value_of) {
    const auto first = static_cast<int64_t>(staging_.size());
    for (const SamplingRow& row : rows) {
      staging_.push_back(std::bit_cast<int32_t>(value_of(row)));
    }
    return front(buffers_.columns, first, dtype, {count});
  };
  SamplingRows result;
  result.temperature =
      add_column(DType::f32, [](const SamplingRow& row) { return row.settings->temperature; });
  result.top_k = add_column(DType::i32, [](const SamplingRow& row) { return row.settings->top_k; });
  result.top_p = add_column(DType::f32, [](const SamplingRow& row) { return row.settings->top_p; });
  result.min_p = add_column(DType::f32, [](const SamplingRow& row) { return row.settings->min_p; });
  result.uniform = add_column(DType::f32, [](const SamplingRow& row) {
    return uniform_draw(row.settings->seed, static_cast<uint64_t>(row.token_index));
  });
  result.repetition_penalty = add_column(
      DType::f32, [](const SamplingRow& row) { return row.settings->repetition_penalty; });
  result.presence_penalty =
      add_column(DType::f32, [](const SamplingRow& row) { return row.settings->presence_penalty; });
  result.frequency_penalty = add_column(
      DType::f32, [](const SamplingRow& row) { return row.settings->frequency_penalty; });
  result.counts_row = add_column(DType::i32, [](const SamplingRow& row) {
    return row.settings->has_penalties() ? row.line : -1;
  });
  int32_t num_masks = 0;
  result.mask_row = add_column(
      DType::i32, [&](const SamplingRow& row) { return row.allowed.empty() ? -1 : num_masks++; });
  result.token_counts = buffers_.token_counts;
  result.allowed = buffers_.allowed;
  backend_.upload(std::as_bytes(std::span(staging_)),
                  front(buffers_.columns, 0, DType::i32, {kNumColumns * count}));
  if (num_masks == 0) return result;
  for (const SamplingRow& row : rows) {
    mask_staging_.insert(mask_staging_.end(), row.allowed.begin(), row.allowed.end());
  }
  const int64_t words = words_of_mask(vocab_size_);
  check(static_cast<int64_t>(mask_staging_.size()) == num_masks * words,
        "a mask has the wrong size");
  backend_.upload(std::as_bytes(std::span(mask_staging_)), buffers_.allowed.slice(0, 0, num_masks));
  return result;
}

std::vector<SampledToken> Sampler::sample(const Tensor& logits, std::span<const SamplingRow> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  std::vector<SampledToken> sampled(rows.size());
  const SamplingRows settings = upload_rows(rows);
  download_top(logits, rows, sampled);  // first: sampling overwrites the logits
  const Tensor ids = front(buffers_.chosen, 0, DType::i32, {count});
  const Tensor log_probs = front(buffers_.chosen, count, DType::f32, {count});
  backend_.sample(logits, settings, ids, log_probs);
  const bool counts_tokens = std::any_of(rows.begin(), rows.end(), [](const SamplingRow& row) {
    return row.settings->has_penalties();
  });
  if (counts_tokens) backend_.count_tokens(ids, settings.counts_row, buffers_.token_counts);

  // Both come down in one copy: a small one costs a trip to the GPU, not its bytes.
  const auto chosen =
      downloaded<int32_t>(backend_, front(buffers_.chosen, 0, DType::i32, {2 * count}));
  for (size_t i = 0; i < rows.size(); ++i) {
    sampled[i].chosen = {chosen[i], std::bit_cast<float>(chosen[rows.size() + i])};
  }
  return sampled;
}

void Sampler::download_top(const Tensor& logits, std::span<const SamplingRow> rows,
                           std::vector<SampledToken>& sampled) {
  int64_t most = 0;
  for (const SamplingRow& row : rows) most = std::max<int64_t>(most, row.settings->logprobs);
  most = std::min(most, vocab_size_);
  if (most == 0) return;
  const auto count = static_cast<int64_t>(rows.size());
  const Tensor ids = front(buffers_.top_ids, 0, DType::i32, {count, most});
  const Tensor log_probs = front(buffers_.top_log_probs, 0, DType::f32, {count, most});
  backend_.top_log_probs(logits, ids, log_probs);
  const auto tokens = downloaded<int32_t>(backend_, ids);
  const auto chances = downloaded<float>(backend_, log_probs);
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t wanted = std::min<int64_t>(rows[i].settings->logprobs, most);
    for (int64_t j = 0; j < wanted; ++j) {
      const auto at = i * static_cast<size_t>(most) + static_cast<size_t>(j);
      sampled[i].top.push_back({tokens[at], chances[at]});
    }
  }
}

}  // namespace glimpse
