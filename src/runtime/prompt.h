// From a request to tokens and pixels: everything that happens on a worker thread before the
// engine sees a sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "glimpse/request.h"
#include "image/image_processor.h"
#include "model/rotary.h"
#include "runtime/loaded_model.h"

namespace glimpse {

struct PreparedPicture {
  VisualSpan span;
  ProcessedPicture processed;
  PictureUsage usage;
};

struct PreparedPrompt {
  std::vector<TokenId> tokens;  // placeholders expanded: one a visual token
  std::vector<PreparedPicture> pictures;
  SequencePositions positions;
  bool ends_in_reasoning = false;  // the template opened <think> and left it open
  double decode_milliseconds = 0;
  double resize_milliseconds = 0;
};

/// Reads, decodes, resizes, renders and tokenises. Files named by path are read into
/// `request`, so that a picture can be prepared again whatever happens to its file. Throws Error:
/// the request's own fault. Thread-safe for different requests. Idle threads of `helpers`, where
/// given, share the work on a picture.
[[nodiscard]] PreparedPrompt prepare_prompt(const LoadedModel& model, Request& request,
                                            WorkerPool* helpers);

/// One picture again, after its pixels were dropped.
[[nodiscard]] ProcessedPicture prepare_picture_again(const LoadedModel& model,
                                                     const Picture& picture, WorkerPool* helpers);

/// The pictures of a request in the order in which its placeholders stand.
[[nodiscard]] std::vector<Picture*> pictures_of(Request& request);

/// What can be said of a request without preparing it: exactly one kind of prompt, tokenizer and
/// vision tower where they are needed. Throws Error(invalid_argument) or Error(unsupported).
void check_prompt(const LoadedModel& model, Request& request);

}  // namespace glimpse
