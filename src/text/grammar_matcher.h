// Follows a grammar byte by byte, all ways at once.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <deque>
#include <vector>

#include "text/grammar.h"
#include "text/json_string.h"

namespace glimpse {

/// A place in a grammar.
struct GrammarPosition {
  uint32_t stack = 0;  ///< of the rules to come back to: GrammarMatcher's
  StateId state = 0;
  uint32_t length = 0;  ///< characters begun in the string, no further than it matters
  uint8_t inside = 0;   ///< StringStep's state

  friend bool operator==(const GrammarPosition&, const GrammarPosition&) = default;
  friend auto operator<=>(const GrammarPosition&, const GrammarPosition&) = default;
};

/// All places that the bytes so far allow: sorted, each of them waiting for a byte, an added token
/// or the end.
using GrammarPositions = std::vector<GrammarPosition>;

/// Moves positions over bytes. Not thread-safe. The grammar must outlive it.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(const Grammar& grammar);

  [[nodiscard]] const Grammar& grammar() const { return *grammar_; }
  // All of these throw Error(unsupported) when the grammar is too ambiguous to be followed.
  [[nodiscard]] GrammarPositions start();
  /// `out` becomes where `byte` leads; empty when it is refused.
  void step(const GrammarPositions& from, uint8_t byte, GrammarPositions& out);
  void step_token(const GrammarPositions& from, TokenId token, GrammarPositions& out);
  /// Where the closing quote of the string at `position` leads.
  void close_string(const GrammarPosition& position, GrammarPositions& out);
  /// The position one step further within its string; what the limits say is the caller's affair.
  [[nodiscard]] GrammarPosition within_string(GrammarPosition position, StringStep step) const;

  /// At least the bytes that lead on from the positions.
  using Bytes = std::array<uint64_t, 4>;
  [[nodiscard]] Bytes possible_bytes(const GrammarPositions& positions) const;
  /// Added tokens that lead on from the positions.
  [[nodiscard]] std::vector<TokenId> added_tokens(const GrammarPositions& positions) const;
  /// True when the grammar's end is among the positions.
  [[nodiscard]] static bool is_complete(const GrammarPositions& positions);
  [[nodiscard]] bool is_string(const GrammarPosition& position) const {
    return position.state != kEnd && grammar_->states[position.state].is_string;
  }
  /// The number of the pattern that the position is in; 0: none.
  [[nodiscard]] uint32_t pattern_of(const GrammarPosition& position) const {
    return position.state == kEnd ? 0 : grammar_->states[position.state].pattern;
  }
  /// Stacks that were met so far; they are kept for the matcher's life.
  [[nodiscard]] size_t num_stacks() const { return stacks_.size(); }

 private:
  static constexpr StateId kEnd = kUnlimited;  // the state of the one position that is the end

  struct StackNode {
    uint32_t below;
    StateId resume;
    uint32_t depth;
  };
  // What a state reaches by jumps alone.
  struct Closure {
    std::vector<StateId> stops;  // states that wait for something
    std::vector<GrammarState::Call> calls;
    bool ends_rule = false;
  };
  struct Place {
    uint32_t stack;
    StateId state;
    friend bool operator==(const Place&, const Place&) = default;
  };
  [[nodiscard]] uint32_t push(uint32_t below, StateId resume);
  [[nodiscard]] const Closure& closure_of(StateId state);
  [[nodiscard]] bool fits(uint32_t stack, StateId state) const;
  void add(Place place, GrammarPositions& out);
  void expect(Place place);
  static void tidy(GrammarPositions& positions);

  const Grammar* grammar_;
  std::vector<StackNode> stacks_;                 // [0] is the empty stack; equal stacks are one
  std::vector<std::vector<uint32_t>> pushed_on_;  // stacks made by pushing on each
  std::vector<int32_t> closure_index_;            // by state; -1: not yet known
  std::deque<Closure> closures_;
  std::vector<Place> places_;  // that add() has still to follow, and those it has followed
};

}  // namespace glimpse
