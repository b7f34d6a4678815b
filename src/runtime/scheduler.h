// What the next step computes: every decode row, and at most one slice of other work (some blocks
// of a vision pass, or prefill chunks). Pure logic over page and picture bookkeeping, no tensors.
//
// Order of service is order of arrival: the oldest running sequence gets pages from the youngest
// when they run out (which is recomputed later), so somebody always advances and nobody starves.
// Of two slices one goes to the oldest sequence and one to the shortest, so that a long prompt
// does not hold up short ones.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/sequence.h"

namespace glimpse {

struct SchedulerLimits {
  int max_sequences = 1;  // running at once
  int64_t max_rows = 1;   // of one step
};

/// Tokens [first, first + count) of a sequence; its pages are taken.
struct TokenRange {
  Sequence* sequence = nullptr;
  int64_t first = 0;
  int64_t count = 0;

  /// The range ends the known tokens, or is the one after them, which is being chosen: the next one
  /// is to be sampled.
  [[nodiscard]] bool samples() const { return first + count >= sequence->num_tokens(); }
};

/// A picture of a sequence.
struct PictureOf {
  Sequence* sequence = nullptr;
  size_t index = 0;

  [[nodiscard]] SequencePicture& get() const { return sequence->pictures[index]; }
};

struct StepPlan {
  std::vector<TokenRange> ranges;  // decode rows first, in order of arrival
  int64_t num_decode_rows = 0;
  /// Start a vision pass for this picture, into its entry, and advance it.
  std::optional<PictureOf> begin_vision;
  /// Advance the pass under way.
  bool continue_vision = false;
  /// Pictures whose pixels must be made again.
  std::vector<PictureOf> wanted_pixels;

  [[nodiscard]] bool empty() const { return ranges.empty() && !begin_vision && !continue_vision; }
  [[nodiscard]] bool only_decodes() const {
    return num_decode_rows == static_cast<int64_t>(ranges.size());
  }
  [[nodiscard]] int64_t num_rows() const;
};

/// Not thread-safe. Sequences are owned by the caller and stay in place until remove().
class Scheduler {
 public:
  Scheduler(KvCache& kv, PictureCache& pictures, SchedulerLimits limits)
      : kv_(kv), pictures_(pictures), limits_(limits), line_is_used_(limits.max_sequences) {}

  /// A new sequence. It must fit the cache alone, one token more included.
  void add(Sequence& sequence);
  /// Forgets a sequence, wherever it stands, and gives back what it holds.
  void remove(Sequence& sequence);

  /// `prefill_rows`: rows that this step may spend on prompts.
  [[nodiscard]] StepPlan next_step(int64_t prefill_rows);
  /// What follows `current`, whose tokens are not known yet, if it is certain but for sequences
  /// that end with their token: one more token of the same sequences in the same order, nobody
  /// joins, and nobody has to give up pages. May be called while no sequence was removed since
  /// `current`.
  [[nodiscard]] std::optional<StepPlan> plan_ahead(const StepPlan& current);
  /// These ranges are computed: called before tokens are appended.
  void finish_ranges(std::span<const TokenRange> ranges);
  /// The vision pass under way is done.
  void finish_vision();
  /// The vision pass under way was given up.
  void abandon_vision();
  /// Nobody waits for the pass under way any more.
  [[nodiscard]] bool vision_is_orphaned() const {
    return encoding_ != nullptr && encoding_->references == 1;
  }

  [[nodiscard]] const std::vector<Sequence*>& running() const { return running_; }
  [[nodiscard]] const std::vector<Sequence*>& waiting() const { return waiting_; }
  [[nodiscard]] bool is_idle() const { return running_.empty() && waiting_.empty(); }
  [[nodiscard]] int64_t num_preemptions() const { return num_preemptions_; }

 private:
  void admit();
  bool try_admit(Sequence& sequence);
  void plan_decode(StepPlan& plan);
  void plan_slice(int64_t prefill_rows, StepPlan& plan);
  [[nodiscard]] std::vector<Sequence*> slice_candidates();
  /// How many tokens a chunk may take before it meets a picture that is not ready. Sets
  /// plan.begin_vision where that picture comes first and can be started.
  [[nodiscard]] int64_t prepare_pictures(Sequence& sequence, int64_t count, StepPlan& plan);
  /// Takes pages for the first `num_tokens` tokens, from younger sequences if need be. Returns how
  /// many tokens have pages.
  int64_t take_pages(Sequence& sequence, int64_t num_tokens, StepPlan& plan);
  void preempt(Sequence& sequence);
  void give_back(Sequence& sequence);

  KvCache& kv_;
  PictureCache& pictures_;
  SchedulerLimits limits_;
  std::vector<Sequence*> waiting_;  // by arrival
  std::vector<Sequence*> running_;  // by arrival
  std::vector<bool> line_is_used_;
  PictureCache::Entry* encoding_ = nullptr;  // holds a reference of its own
  bool oldest_turn_ = true;
  int64_t num_preemptions_ = 0;
};

}  // namespace glimpse
