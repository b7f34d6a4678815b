#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <string>

#include "base/check.h"
#include "runtime/random.h"

namespace glimpse {
namespace {

constexpr uint16_t kInPrompt = 0x8000;
constexpr uint16_t kMaxCount = 0x7FFF;
constexpr int64_t kNumColumns = 10;
constexpr std::string_view kReportsName = "the chosen tokens";

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

SamplerReports carve_reports(int64_t max_rows, Arena& arena) {
  SamplerReports reports;
  for (SamplerReport& report : reports) report = SamplerReport::carve(max_rows, arena);
  return reports;
}

}  // namespace

SamplerBuffers SamplerBuffers::carve(int64_t vocab_size, int64_t max_rows, Arena& arena) {
  SamplerBuffers buffers;
  buffers.token_counts = arena.allocate(DType::u16, {max_rows, vocab_size});
  buffers.allowed = arena.allocate(DType::u32, {max_rows, words_of_mask(vocab_size)});
  buffers.chosen = arena.allocate(DType::i32, {max_rows});
  if (arena.device() == Device::cpu) buffers.reports = carve_reports(max_rows, arena);
  return buffers;
}

SamplerReport SamplerReport::carve(int64_t max_rows, Arena& arena) {
  SamplerReport report;
  report.ids = arena.allocate(DType::i32, {max_rows});
  report.log_probs = arena.allocate(DType::f32, {max_rows});
  report.top_ids = arena.allocate(DType::i32, {max_rows * kMaxTopLogProbs});
  report.top_log_probs = arena.allocate(DType::f32, {max_rows * kMaxTopLogProbs});
  return report;
}

Sampler::Sampler(Backend& backend, int64_t vocab_size, int64_t max_rows, Arena& arena)
    : backend_(backend),
      vocab_size_(vocab_size),
      buffers_(SamplerBuffers::carve(vocab_size, max_rows, arena)) {
  if (backend.device() == Device::cpu) {
    reports_ = buffers_.reports;
    return;
  }
  Arena measuring = Arena::measuring(backend.device());
  static_cast<void>(carve_reports(max_rows, measuring));
  shared_.emplace(backend.allocate_shared(measuring.peak_bytes(), kReportsName),
                  std::string(kReportsName));
  reports_ = carve_reports(max_rows, *shared_);
}

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

int64_t Sampler::num_words(int64_t rows) {
  return kNumColumns * rows;
}

// Which columns there are and where follows from the number of rows.
std::vector<int32_t> Sampler::pack(std::span<const SamplingRow> rows) {
  std::vector<int32_t> words;
  const auto add_column = [&](const auto& value_of) {
    for (const SamplingRow& row : rows) words.push_back(std::bit_cast<int32_t>(value_of(row)));
  };
  add_column([](const SamplingRow& row) { return row.settings->temperature; });
  add_column([](const SamplingRow& row) { return row.settings->top_k; });
  add_column([](const SamplingRow& row) { return row.settings->top_p; });
  add_column([](const SamplingRow& row) { return row.settings->min_p; });
  add_column([](const SamplingRow& row) {
    return uniform_draw(row.settings->seed, static_cast<uint64_t>(row.token_index));
  });
  add_column([](const SamplingRow& row) { return row.settings->repetition_penalty; });
  add_column([](const SamplingRow& row) { return row.settings->presence_penalty; });
  add_column([](const SamplingRow& row) { return row.settings->frequency_penalty; });
  add_column([](const SamplingRow& row) { return row.settings->has_penalties() ? row.line : -1; });
  int32_t num_masks = 0;
  add_column([&](const SamplingRow& row) { return row.has_mask ? num_masks++ : -1; });
  return words;
}

SamplingRows Sampler::columns_of(const Tensor& packed, std::span<const SamplingRow> rows) const {
  const auto count = static_cast<int64_t>(rows.size());
  int64_t first = 0;
  const auto next = [&](DType dtype) {
    const Tensor column = front(packed, first, dtype, {count});
    first += count;
    return column;
  };
  SamplingRows columns;
  columns.temperature = next(DType::f32);
  columns.top_k = next(DType::i32);
  columns.top_p = next(DType::f32);
  columns.min_p = next(DType::f32);
  columns.uniform = next(DType::f32);
  columns.repetition_penalty = next(DType::f32);
  columns.presence_penalty = next(DType::f32);
  columns.frequency_penalty = next(DType::f32);
  columns.counts_row = next(DType::i32);
  columns.mask_row = next(DType::i32);
  columns.token_counts = buffers_.token_counts;
  columns.allowed = buffers_.allowed;
  columns.all_greedy = std::all_of(rows.begin(), rows.end(), [](const SamplingRow& row) {
    return row.settings->temperature <= 0;
  });
  return columns;
}

void Sampler::upload_masks(std::span<const std::span<const uint32_t>> masks) {
  if (masks.empty()) return;
  const auto words = static_cast<size_t>(words_of_mask(vocab_size_));
  mask_staging_.clear();
  for (const std::span<const uint32_t> mask : masks) {
    check(mask.empty() || mask.size() == words, "a mask has the wrong size");
    mask_staging_.insert(mask_staging_.end(), mask.begin(), mask.end());
    if (mask.empty()) mask_staging_.insert(mask_staging_.end(), words, ~uint32_t{0});
  }
  backend_.upload(std::as_bytes(std::span(mask_staging_)),
                  buffers_.allowed.slice(0, 0, static_cast<int64_t>(masks.size())));
}

ChosenTokens Sampler::choose(const Tensor& logits, const Tensor& packed,
                             std::span<const SamplingRow> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  turn_ = (turn_ + 1) % reports_.size();
  const SamplerReport& report = reports_[turn_];
  const SamplingRows columns = columns_of(packed, rows);
  const Tensor ids = buffers_.chosen.slice(0, 0, count);
  backend_.sample(logits, columns, ids, report.log_probs.slice(0, 0, count),
                  report.ids.slice(0, 0, count));
  ChosenTokens chosen{.turn = turn_};
  bool counts_tokens = false;
  for (const SamplingRow& row : rows) {
    counts_tokens |= row.settings->has_penalties();
    const int64_t wanted = std::clamp<int64_t>(row.settings->logprobs, 0, vocab_size_);
    chosen.num_top.push_back(static_cast<int>(wanted));
    chosen.most_top = std::max(chosen.most_top, wanted);
  }
  if (counts_tokens) backend_.count_tokens(ids, columns.counts_row, buffers_.token_counts);
  if (chosen.most_top > 0) {
    backend_.top_log_probs(logits, front(report.top_ids, 0, DType::i32, {count, chosen.most_top}),
                           front(report.top_log_probs, 0, DType::f32, {count, chosen.most_top}));
  }
  chosen.done = backend_.mark();
  return chosen;
}

std::vector<SampledToken> Sampler::read(const ChosenTokens& chosen) {
  backend_.wait(chosen.done);
  const SamplerReport& report = reports_[chosen.turn];
  const auto chance = [](const Tensor& ids, const Tensor& log_probs, size_t at) {
    return TokenChance{ids.data<int32_t>()[at], log_probs.data<float>()[at]};
  };
  std::vector<SampledToken> tokens(chosen.num_top.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i].chosen = chance(report.ids, report.log_probs, i);
    const size_t first = i * static_cast<size_t>(chosen.most_top);
    for (size_t j = 0; j < static_cast<size_t>(chosen.num_top[i]); ++j) {
      tokens[i].top.push_back(chance(report.top_ids, report.top_log_probs, first + j));
    }
  }
  return tokens;
}

}  // namespace glimpse
