// Which grammar a request asks its answer to follow. Requests that ask for the same share it and
// its masks.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "glimpse/request.h"
#include "runtime/loaded_model.h"
#include "text/answer_grammar.h"
#include "text/grammar_masks.h"
#include "text/token_constraint.h"

namespace glimpse {

/// Thread-safe; what it makes is for one thread, the engine's. The model must outlive it.
class ConstraintFactory {
 public:
  explicit ConstraintFactory(const LoadedModel& model) : model_(model) {}

  /// nullptr for an answer of free text. `after_reasoning`: the prompt leaves a thought open, and
  /// the answer proper begins after it. Throws Error(invalid_argument) or Error(unsupported) for a
  /// schema or tools that cannot be used.
  [[nodiscard]] std::unique_ptr<TokenConstraint> make(const Request& request, bool after_reasoning);

 private:
  [[nodiscard]] std::shared_ptr<GrammarMasks> masks_of(const AnswerForm& form);
  [[nodiscard]] std::shared_ptr<const TokenIndex> index();

  const LoadedModel& model_;
  std::mutex mutex_;
  std::shared_ptr<const TokenIndex> index_;  // made when it is first needed
  // The grammars used last, the latest first. Shared with the constraints that follow them.
  std::deque<std::pair<std::string, std::shared_ptr<GrammarMasks>>> known_;
};

}  // namespace glimpse
