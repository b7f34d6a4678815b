// Answers that follow a grammar: from the first token on, or from a token that announces it.
#pragma once

#include <memory>

#include "text/grammar_masks.h"
#include "text/token_constraint.h"

namespace glimpse {

/// One answer that follows a grammar to its end.
class GrammarConstraint final : public TokenConstraint {
 public:
  /// The masks are shared with the other answers of the same grammar, on the same thread.
  explicit GrammarConstraint(std::shared_ptr<GrammarMasks> masks);

  [[nodiscard]] std::span<const uint32_t> mask() override;
  void accept(TokenId token) override;

 private:
  std::shared_ptr<GrammarMasks> masks_;
  GrammarPositions positions_;
  std::shared_ptr<const TokenMask> mask_;  // what the last mask() is made of
};

/// Free text in which `trigger` begins a passage that follows a grammar: a tool call.
class TriggeredConstraint final : public TokenConstraint {
 public:
  enum class Passages { any_number, at_most_one };
  TriggeredConstraint(std::shared_ptr<GrammarMasks> masks, TokenId trigger, Passages passages);

  [[nodiscard]] std::span<const uint32_t> mask() override;
  void accept(TokenId token) override;

 private:
  enum class Phase { free, passage, ended };

  std::shared_ptr<GrammarMasks> masks_;
  TokenId trigger_;
  Passages passages_;
  Phase phase_ = Phase::free;
  GrammarPositions positions_;
  std::shared_ptr<const TokenMask> mask_;
};

}  // namespace glimpse
