#include "runtime/pacer.h"

#include <algorithm>

namespace glimpse {
namespace {

// A step may last 50 ms longer than one that only decodes; the rest is room for error.
constexpr double kSliceMilliseconds = 35;
constexpr int64_t kLeastRowsBesideDecoding = 16;
// While nobody is being answered a large model, whose rows are dear, takes chunks that use its
// weights well; only a request that has yet to come would notice.
constexpr double kDearRowMilliseconds = 2;
constexpr int64_t kLeastDearRowsAlone = 512;
// A chunk of less than this share of a slice is short.
constexpr double kShortSlice = 0.3;
// Weight of the newest measurement.
constexpr double kNewest = 0.3;

void blend(double& average, double value) {
  average = average == 0 ? value : average + kNewest * (value - average);
}

}  // namespace

int64_t Pacer::prefill_rows(int64_t num_decoding, int64_t max_rows) const {
  const bool is_dear = prefill_ms_per_row_ > kDearRowMilliseconds;
  const int64_t least = num_decoding > 0 ? kLeastRowsBesideDecoding
                        : is_dear        ? std::max(kLeastDearRowsAlone, least_rows_alone_)
                                         : least_rows_alone_;
  const double rows = std::min(kSliceMilliseconds / std::max(prefill_ms_per_row_, 1e-6), 1e6);
  return std::min(std::max(static_cast<int64_t>(rows), least), max_rows);
}

int64_t Pacer::vision_blocks(int64_t num_patches, int64_t max_blocks) const {
  if (vision_ms_per_patch_block_ == 0) return 1;
  const double block_ms = vision_ms_per_patch_block_ * static_cast<double>(num_patches);
  const double blocks = kSliceMilliseconds / std::max(block_ms, 1e-6);
  return static_cast<int64_t>(std::clamp(blocks, 1.0, static_cast<double>(max_blocks)));
}

void Pacer::observe_step(int64_t num_decode_rows, int64_t num_prefill_rows, double milliseconds) {
  if (num_prefill_rows == 0) {
    blend(decode_step_ms_, milliseconds);
    return;
  }
  if (num_prefill_rows < kLeastRowsBesideDecoding) return;
  const double own = milliseconds - (num_decode_rows > 0 ? decode_step_ms_ : 0);
  const double row_ms = std::max(own, 1e-3) / static_cast<double>(num_prefill_rows);
  if (is_guess_) {
    prefill_ms_per_row_ = row_ms;
    is_guess_ = false;
    return;
  }
  // A short prompt pays the reading of the weights too: it says only what a row costs at most.
  const bool is_short = prefill_ms_per_row_ * static_cast<double>(num_prefill_rows) <
                        kShortSlice * kSliceMilliseconds;
  if (is_short && row_ms > prefill_ms_per_row_) return;
  blend(prefill_ms_per_row_, row_ms);
}

void Pacer::observe_vision(int64_t num_patches, int64_t num_blocks, double milliseconds) {
  const auto units = static_cast<double>(num_patches * num_blocks);
  if (units > 0) blend(vision_ms_per_patch_block_, milliseconds / units);
}

}  // namespace glimpse
