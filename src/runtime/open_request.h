// A request from submit() to its last event: what the caller gave, the sequence that the scheduler
// moves, and what has been counted and timed on the way.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "glimpse/engine.h"
#include "runtime/answer_writer.h"
#include "runtime/prompt.h"
#include "runtime/sampler.h"
#include "runtime/sequence.h"
#include "text/token_constraint.h"

namespace glimpse {

using Clock = std::chrono::steady_clock;

[[nodiscard]] inline double milliseconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

/// What a worker makes of a request.
struct Preparation {
  Request request;
  PreparedPrompt prompt;
  std::unique_ptr<TokenConstraint> constraint;  // nullptr: the answer is free
  std::optional<Error> error;
  Clock::time_point started;
};

/// Owned by the engine; touched on its thread only.
struct OpenRequest {
  RequestId id = 0;
  EventCallback on_event;
  RowSampling sampling;
  Clock::time_point submitted;

  /// Empty while a worker has it.
  std::optional<Preparation> preparation;
  std::optional<AnswerWriter> writer;
  Sequence sequence;
  /// Allows forced_token alone, while there is one.
  std::vector<uint32_t> forced_mask;
  /// num_preemptions when the line of token counts was filled; -1: not yet.
  int counts_filled_at = -1;
  bool cancel_wanted = false;

  Clock::time_point prepared;
  bool was_served = false;  // a step has worked on it
  std::optional<Clock::time_point> first_token;
  Usage usage;
  Timings timings;

  [[nodiscard]] const PreparedPrompt& prompt() const { return preparation->prompt; }
  /// Bytes of pixels that wait in host memory for the vision tower.
  [[nodiscard]] int64_t pixel_bytes() const {
    int64_t bytes = 0;
    if (!preparation) return 0;
    for (const PreparedPicture& picture : preparation->prompt.pictures) {
      bytes += static_cast<int64_t>(picture.processed.pixels.size());
    }
    return bytes;
  }
};

}  // namespace glimpse
