#include "runtime/scheduler.h"

#include <algorithm>

#include "base/check.h"
#include "runtime/page_keys.h"

namespace glimpse {
namespace {

void insert_by_arrival(std::vector<Sequence*>& list, Sequence* sequence) {
  const auto place = std::upper_bound(
      list.begin(), list.end(), sequence,
      [](const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; });
  list.insert(place, sequence);
}

bool is_running(const Sequence& sequence) {
  return sequence.line >= 0;
}

// The longest match of whole pages that ends in no picture: the rest of a picture would need
// embeddings that nobody may have any more.
int64_t end_outside_pictures(const Sequence& sequence, int64_t num_pages) {
  for (auto picture = sequence.pictures.rbegin(); picture != sequence.pictures.rend(); ++picture) {
    const int64_t matched = num_pages * kKvPageTokens;
    if (picture->first < matched && matched < picture->end()) {
      num_pages = picture->first / kKvPageTokens;
    }
  }
  return num_pages;
}

// A visual token that is still to be encoded costs the vision tower several patches.
constexpr int64_t kRowsPerVisualToken = 4;

// What stands between a sequence and its first token, in prompt rows.
int64_t work_left(const Sequence& sequence) {
  int64_t rows = sequence.num_remaining();
  for (const SequencePicture& picture : sequence.pictures) {
    const bool is_needed = picture.end() > sequence.num_computed && picture.entry == nullptr;
    if (is_needed) rows += kRowsPerVisualToken * picture.count;
  }
  return rows;
}

// Rows of the next chunk of `remaining` where a step may take `most`: as few chunks as must be, of
// even size, because a short last one costs nearly as much as a long one.
int64_t even_chunk(int64_t remaining, int64_t most) {
  if (remaining <= most) return remaining;
  const int64_t chunks = (remaining + most - 1) / most;
  return std::min(most, pages_of((remaining + chunks - 1) / chunks) * kKvPageTokens);
}

}  // namespace

int64_t StepPlan::num_rows() const {
  int64_t rows = 0;
  for (const TokenRange& range : ranges) rows += range.count;
  return rows;
}

void Scheduler::add(Sequence& sequence) {
  check(pages_of(sequence.num_tokens() + 1) <= kv_.num_pages(), "a sequence exceeds the KV cache");
  insert_by_arrival(waiting_, &sequence);
}

void Scheduler::remove(Sequence& sequence) {
  std::erase(waiting_, &sequence);
  if (!is_running(sequence)) return;
  std::erase(running_, &sequence);
  give_back(sequence);
}

StepPlan Scheduler::next_step(int64_t prefill_rows) {
  StepPlan plan;
  admit();
  plan_decode(plan);
  plan_slice(std::min(prefill_rows, limits_.max_rows - plan.num_decode_rows), plan);
  return plan;
}

std::optional<StepPlan> Scheduler::plan_ahead(const StepPlan& current) {
  const bool nobody_joins =
      waiting_.empty() || static_cast<int>(running_.size()) == limits_.max_sequences;
  const bool all_decode = current.only_decodes() && running_.size() == current.ranges.size();
  if (!nobody_joins || !all_decode || running_.empty() || encoding_ != nullptr) {
    return std::nullopt;
  }
  StepPlan plan;
  int64_t new_pages = 0;
  for (const TokenRange& range : current.ranges) {
    plan.ranges.push_back({range.sequence, range.first + 1, 1});
    new_pages += pages_of(range.first + 2) - static_cast<int64_t>(range.sequence->pages.size());
  }
  if (kv_.num_available() < new_pages) return std::nullopt;
  for (const TokenRange& range : plan.ranges) {
    static_cast<void>(take_pages(*range.sequence, range.first + 1, plan));
  }
  plan.num_decode_rows = static_cast<int64_t>(plan.ranges.size());
  return plan;
}

void Scheduler::admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < limits_.max_sequences) {
    Sequence& first = *waiting_.front();
    if (!try_admit(first)) return;  // nobody overtakes: large requests would starve
    waiting_.erase(waiting_.begin());
    insert_by_arrival(running_, &first);
  }
}

bool Scheduler::try_admit(Sequence& sequence) {
  extend_page_keys(sequence);
  // The last token is always computed: its logits are wanted.
  const int64_t num_keys = (sequence.num_tokens() - 1) / kKvPageTokens;
  std::vector<PageId> pages =
      kv_.match(std::span(sequence.page_keys).first(static_cast<size_t>(num_keys)));
  const auto keep =
      static_cast<size_t>(end_outside_pictures(sequence, static_cast<int64_t>(pages.size())));
  kv_.release(std::span(pages).subspan(keep));
  pages.resize(keep);

  // Each running sequence is about to want a page too; admitting into the last ones would only
  // cause preemptions.
  const int64_t wanted = pages_of(sequence.num_tokens() + 1) - static_cast<int64_t>(keep) +
                         static_cast<int64_t>(running_.size());
  if (!running_.empty() && kv_.num_available() < wanted) {
    kv_.release(pages);
    return false;
  }
  const auto line = std::find(line_is_used_.begin(), line_is_used_.end(), false);
  *line = true;
  sequence.line = static_cast<int>(line - line_is_used_.begin());
  sequence.pages = std::move(pages);
  sequence.num_published = static_cast<int64_t>(keep);
  sequence.num_computed = sequence.num_published * kKvPageTokens;
  if (sequence.num_preemptions == 0) sequence.num_matched = sequence.num_computed;
  return true;
}

void Scheduler::plan_decode(StepPlan& plan) {
  const std::vector<Sequence*> by_arrival = running_;
  for (Sequence* sequence : by_arrival) {
    if (!is_running(*sequence) || !sequence->is_decoding()) continue;
    if (take_pages(*sequence, sequence->num_tokens(), plan) < sequence->num_tokens()) {
      // It is the youngest itself: it waits until older ones are done.
      preempt(*sequence);
      continue;
    }
    plan.ranges.push_back({sequence, sequence->num_computed, 1});
    ++plan.num_decode_rows;
  }
}

void Scheduler::plan_slice(int64_t prefill_rows, StepPlan& plan) {
  if (encoding_ != nullptr) {
    // The pass under way has the memory that a prefill chunk would use.
    plan.continue_vision = true;
    return;
  }
  for (Sequence* sequence : slice_candidates()) {
    if (prefill_rows <= 0) break;
    if (!is_running(*sequence)) continue;  // preempted meanwhile
    int64_t count = even_chunk(sequence->num_remaining(), prefill_rows);
    count = std::min(count, prepare_pictures(*sequence, count, plan));
    if (plan.begin_vision) break;
    if (count <= 0) continue;
    const int64_t first = sequence->num_computed;
    count = std::min(count, take_pages(*sequence, first + count, plan) - first);
    if (count <= 0) continue;
    plan.ranges.push_back({sequence, first, count});
    prefill_rows -= count;
  }
  oldest_turn_ = !oldest_turn_;
}

std::vector<Sequence*> Scheduler::slice_candidates() {
  std::vector<Sequence*> candidates;
  for (Sequence* sequence : running_) {
    if (!sequence->is_decoding()) candidates.push_back(sequence);
  }
  if (!oldest_turn_ && !candidates.empty()) {
    const auto shortest = std::min_element(
        candidates.begin(), candidates.end(),
        [](const Sequence* a, const Sequence* b) { return work_left(*a) < work_left(*b); });
    std::rotate(candidates.begin(), shortest, shortest + 1);
  }
  return candidates;
}

int64_t Scheduler::prepare_pictures(Sequence& sequence, int64_t count, StepPlan& plan) {
  const int64_t begin = sequence.num_computed;
  for (size_t i = 0; i < sequence.pictures.size(); ++i) {
    SequencePicture& picture = sequence.pictures[i];
    if (picture.end() <= begin) continue;
    if (picture.first >= begin + count) break;
    if (picture.entry == nullptr) picture.entry = pictures_.find(picture.content);
    if (picture.entry != nullptr) continue;  // ready: there is no pass under way

    const int64_t before = std::max<int64_t>(0, picture.first - begin);
    if (!picture.has_pixels) {
      if (!picture.pixels_wanted) plan.wanted_pixels.push_back({&sequence, i});
      picture.pixels_wanted = true;
      return before;
    }
    const bool has_chunk = static_cast<int64_t>(plan.ranges.size()) > plan.num_decode_rows;
    if (has_chunk) return before;
    picture.entry = pictures_.reserve(picture.content, picture.count);
    // No room: pictures in use are given up once their rows are computed, also this sequence's.
    if (picture.entry == nullptr) return before;
    encoding_ = picture.entry;
    ++encoding_->references;
    plan.begin_vision = PictureOf{&sequence, i};
    return 0;
  }
  return count;
}

int64_t Scheduler::take_pages(Sequence& sequence, int64_t num_tokens, StepPlan& plan) {
  while (static_cast<int64_t>(sequence.pages.size()) < pages_of(num_tokens)) {
    if (const std::optional<PageId> page = kv_.take()) {
      sequence.pages.push_back(*page);
      continue;
    }
    Sequence* youngest = running_.back();
    if (youngest == &sequence) break;
    const auto planned =
        std::find_if(plan.ranges.begin(), plan.ranges.end(),
                     [&](const TokenRange& range) { return range.sequence == youngest; });
    if (planned != plan.ranges.end()) {
      if (planned - plan.ranges.begin() < plan.num_decode_rows) --plan.num_decode_rows;
      plan.ranges.erase(planned);
    }
    preempt(*youngest);
  }
  return std::min(num_tokens, static_cast<int64_t>(sequence.pages.size()) * kKvPageTokens);
}

void Scheduler::finish_ranges(std::span<const TokenRange> ranges) {
  for (const TokenRange& range : ranges) {
    Sequence& sequence = *range.sequence;
    sequence.num_computed = range.first + range.count;
    extend_page_keys(sequence);
    for (; sequence.num_published < sequence.num_computed / kKvPageTokens;
         ++sequence.num_published) {
      const auto page = static_cast<size_t>(sequence.num_published);
      kv_.publish(sequence.pages[page], sequence.page_keys[page]);
    }
    for (SequencePicture& picture : sequence.pictures) {
      if (picture.entry == nullptr || picture.end() > sequence.num_computed) continue;
      pictures_.release(picture.entry);
      picture.entry = nullptr;
    }
  }
}

void Scheduler::finish_vision() {
  check(encoding_ != nullptr, "no vision pass is under way");
  encoding_->is_ready = true;
  abandon_vision();
}

void Scheduler::abandon_vision() {
  pictures_.release(encoding_);
  encoding_ = nullptr;
}

void Scheduler::preempt(Sequence& sequence) {
  std::erase(running_, &sequence);
  give_back(sequence);
  sequence.num_computed = 0;
  ++sequence.num_preemptions;
  ++num_preemptions_;
  insert_by_arrival(waiting_, &sequence);
}

void Scheduler::give_back(Sequence& sequence) {
  kv_.release(sequence.pages);
  sequence.pages.clear();
  sequence.num_published = 0;
  for (SequencePicture& picture : sequence.pictures) {
    if (picture.entry != nullptr) pictures_.release(picture.entry);
    picture.entry = nullptr;
  }
  line_is_used_[static_cast<size_t>(sequence.line)] = false;
  sequence.line = -1;
}

}  // namespace glimpse
