// From the scheduler's plan to the numbers that the language model reads.
#include <algorithm>
#include <bit>

#include "runtime/engine_implementation.h"

namespace glimpse {
namespace {

// The smallest power of two that holds `count`.
int64_t bucket_of(int64_t count) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)));
}

}  // namespace

Batch Engine::Implementation::make_batch(const StepPlan& plan, std::span<const SamplingRow> rows) {
  Batch batch;
  batch.sampling = Sampler::pack(rows);
  batch.chosen = sampler_->chosen();
  batch.query_begin.push_back(0);
  for (const TokenRange& range : plan.ranges) {
    add_pictures(range, batch);  // first: it needs to know where the range's rows begin
    add_range(range, batch);
    if (range.samples()) batch.output_rows.push_back(static_cast<int32_t>(batch.num_rows() - 1));
  }
  if (plan.only_decodes() && model_.backend->device() != Device::cpu) {
    pad_for_replay(bucket_of(batch.num_rows()), batch);
  }
  return batch;
}

void Engine::Implementation::add_range(const TokenRange& range, Batch& batch) {
  const Sequence& sequence = *range.sequence;
  const SequencePositions& prompt = request_of(sequence).prompt().positions;
  const int64_t end = range.first + range.count;
  for (int64_t i = range.first; i < end; ++i) {
    // A token that nobody has seen yet is the one chosen for the same row of the step before.
    const bool is_known = i < sequence.num_tokens();
    batch.token_ids.push_back(is_known ? sequence.tokens[static_cast<size_t>(i)]
                                       : static_cast<TokenId>(-1 - batch.num_rows()));
    for (size_t axis = 0; axis < prompt.axes.size(); ++axis) {
      // The answer goes on behind the largest position of the prompt, on all axes alike.
      const int64_t position = i < sequence.num_prompt_tokens
                                   ? prompt.axes[axis][static_cast<size_t>(i)]
                                   : prompt.next_position + (i - sequence.num_prompt_tokens);
      batch.positions[axis].push_back(static_cast<int32_t>(position));
    }
    const PageId page = sequence.pages[static_cast<size_t>(i / kKvPageTokens)];
    batch.slots.push_back(static_cast<int32_t>(page * kKvPageTokens + i % kKvPageTokens));
  }
  batch.query_begin.push_back(static_cast<int32_t>(batch.num_rows()));
  batch.context_length.push_back(static_cast<int32_t>(end));
  batch.page_table.insert(batch.page_table.end(), sequence.pages.begin(), sequence.pages.end());
  const auto max_pages = static_cast<size_t>(language_->limits().max_pages);
  batch.page_table.resize(batch.context_length.size() * max_pages, 0);
  batch.max_queries = std::max(batch.max_queries, range.count);
  batch.max_context = std::max(batch.max_context, end);
}

void Engine::Implementation::add_pictures(const TokenRange& range, Batch& batch) {
  for (const SequencePicture& picture : range.sequence->pictures) {
    const int64_t first = std::max(picture.first, range.first);
    const int64_t end = std::min(picture.end(), range.first + range.count);
    if (first >= end) continue;
    check(picture.entry != nullptr && picture.entry->is_ready, "a picture is not in the store");
    VisualPiece piece;
    piece.tokens = visual_store_.slice(picture.entry->first + (first - picture.first), end - first);
    for (int64_t i = first; i < end; ++i) {
      piece.rows.push_back(static_cast<int32_t>(batch.num_rows() + (i - range.first)));
    }
    batch.pictures.push_back(std::move(piece));
  }
}

// Rows that stand for nobody read the first slot of page 0 and write nowhere. The bound of the
// context is the engine's: a bound that grew with the answer would be another recording each time.
void Engine::Implementation::pad_for_replay(int64_t rows, Batch& batch) const {
  rows = std::min(rows, int64_t{model_.plan.shape.max_sequences});
  while (batch.num_rows() < rows) {
    batch.token_ids.push_back(0);
    for (auto& axis : batch.positions) axis.push_back(0);
    batch.slots.push_back(-1);
    batch.context_length.push_back(1);
    batch.output_rows.push_back(static_cast<int32_t>(batch.num_rows() - 1));
    batch.query_begin.push_back(static_cast<int32_t>(batch.num_rows()));
  }
  batch.page_table.resize(static_cast<size_t>(rows * language_->limits().max_pages), 0);
  batch.max_queries = 1;
  batch.max_context = model_.plan.shape.context;
}

void Engine::Implementation::warm_up() {
  if (model_.backend->device() == Device::cpu) return;
  const WatchedStep watched(watchdog_ ? &*watchdog_ : nullptr);
  const int64_t most = model_.plan.shape.max_sequences;
  const RowSampling greedy{};
  const RowSampling drawn{.temperature = 1, .top_k = 20};
  for (int64_t rows = 1;; rows = std::min(2 * rows, most)) {
    std::vector<ChosenTokens> in_flight;
    for (const RowSampling* how : {&greedy, &drawn}) {
      const std::vector<SamplingRow> settings(static_cast<size_t>(rows), {.settings = how});
      Batch batch;
      batch.query_begin.push_back(0);
      batch.sampling = Sampler::pack(settings);
      batch.chosen = sampler_->chosen();
      pad_for_replay(rows, batch);
      const Tensor logits = language_->replay(batch, kv_pool_.layers, activations_.decode);
      in_flight.push_back(sampler_->choose(logits, language_->sampling(), settings));
    }
    for (const ChosenTokens& step : in_flight) static_cast<void>(sampler_->read(step));
    if (rows == most) break;
  }
  model_.backend->synchronize();
}

}  // namespace glimpse
