// How much prompt or vision work one step may do beside its decode rows, by measured time, so that
// nobody who is being answered waits long for somebody else's picture.
#pragma once

#include <cstdint>

namespace glimpse {

/// Running averages of what things cost. Not thread-safe.
class Pacer {
 public:
  /// `prefill_ms_per_row`: a guess, until something was measured. `least_rows_alone`: rows that a
  /// step takes, however long they last, while nobody is being answered.
  Pacer(double prefill_ms_per_row, int64_t least_rows_alone)
      : prefill_ms_per_row_(prefill_ms_per_row), least_rows_alone_(least_rows_alone) {}

  /// Rows that fit the time of a slice, at most `max_rows`. Tiny chunks waste the reading of the
  /// weights, so there is a floor, which is higher while nobody is being answered.
  [[nodiscard]] int64_t prefill_rows(int64_t num_decoding, int64_t max_rows) const;
  /// Blocks of a vision pass over `num_patches` patches; at least one.
  [[nodiscard]] int64_t vision_blocks(int64_t num_patches, int64_t max_blocks) const;

  /// A step that took `milliseconds` apart from any vision work.
  void observe_step(int64_t num_decode_rows, int64_t num_prefill_rows, double milliseconds);
  void observe_vision(int64_t num_patches, int64_t num_blocks, double milliseconds);

 private:
  double prefill_ms_per_row_;
  int64_t least_rows_alone_;
  bool is_guess_ = true;
  double decode_step_ms_ = 0;
  double vision_ms_per_patch_block_ = 0;  // 0: not measured yet
};

}  // namespace glimpse
