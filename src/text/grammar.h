// Pushdown grammars over bytes: what a constrained answer may look like. Rules call one another; a
// JSON string is one state with a counter, because nearly every token fits into one.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace glimpse {

using StateId = uint32_t;

struct GrammarState {
  struct Edge {
    uint8_t first;  ///< bytes first..last lead to target
    uint8_t last;
    StateId target;
  };
  struct Call {
    StateId rule;    ///< start of the rule
    StateId resume;  ///< where to go on once the rule has ended
  };
  std::vector<Edge> edges;
  std::vector<StateId> jumps;  ///< without consuming anything
  std::vector<Call> calls;
  TokenId token = -1;  ///< an added token that leads to token_target; -1: none
  StateId token_target = 0;
  bool ends_rule = false;
  /// Inside a JSON string of min_length..max_length characters; its closing quote leads to close.
  bool is_string = false;
  uint32_t min_length = 0;
  uint32_t max_length = 0;
  StateId close = 0;
  /// Inside a JSON string that matches a pattern: one edge a byte, and those over quotes between
  /// characters all lead to the same state.
  uint32_t pattern = 0;  ///< which of the grammar's, from 1; 0: none
  uint8_t inside = 0;    ///< of a pattern: StringStep's state
  /// How many more rules must be open at once, at least, until this rule can end.
  uint32_t needed_depth = 0;
};

inline constexpr uint32_t kUnlimited = std::numeric_limits<uint32_t>::max();

/// Immutable once finished; thread-safe. From every state the end can be reached with at most
/// needed_depth further rules open, so a matcher that stays within kMaxDepth never gets stuck.
struct Grammar {
  static constexpr uint32_t kMaxDepth = 128;  ///< of rules within rules: two a level of JSON
  std::vector<GrammarState> states;
  StateId start = 0;
};

/// Puts a grammar together from fragments: each runs from `from` to the state it returns.
class GrammarBuilder {
 public:
  [[nodiscard]] StateId new_state();
  [[nodiscard]] GrammarState& state(StateId id) { return grammar_.states[id]; }
  [[nodiscard]] uint32_t new_pattern() { return ++num_patterns_; }
  void jump(StateId from, StateId to) { state(from).jumps.push_back(to); }
  /// A transition over one byte of first..last.
  void edge(StateId from, char first, char last, StateId to);
  void edge(StateId from, char byte, StateId to) { edge(from, byte, byte, to); }

  [[nodiscard]] StateId literal(StateId from, std::string_view bytes);
  /// One of the literals; they share their beginnings.
  [[nodiscard]] StateId one_of(StateId from, const std::vector<std::string>& literals);
  [[nodiscard]] StateId call(StateId from, StateId rule);
  [[nodiscard]] StateId added_token(StateId from, TokenId token);

  [[nodiscard]] StateId digits(StateId from, int at_least, int at_most);

  // JSON.
  /// Nothing, a space, or a line end and its indentation.
  [[nodiscard]] StateId white_space(StateId from);
  /// A string, quotes included.
  [[nodiscard]] StateId string(StateId from, uint32_t min_length, uint32_t max_length);
  [[nodiscard]] StateId integer(StateId from);
  [[nodiscard]] StateId number(StateId from);
  /// An integer of least..most, both of at most kMaxInteger.
  static constexpr int64_t kMaxInteger = 999'999'999'999'999'999;  // 64 bits hold it
  [[nodiscard]] StateId integer_between(StateId from, int64_t least, int64_t most);
  /// A decimal number within bounds of at most kMaxWhole, without an exponent.
  static constexpr int64_t kMaxWhole = 999'999'999'999'999;  // a double holds it
  struct Bounds {
    int64_t least = -kMaxWhole;
    int64_t most = kMaxWhole;
    bool above_least = false;  ///< least itself is excluded
    bool below_most = false;
  };
  [[nodiscard]] StateId number_between(StateId from, const Bounds& bounds);
  /// Any value or object.
  [[nodiscard]] StateId any_value(StateId from);
  [[nodiscard]] StateId any_object(StateId from);

  /// Ends the start rule at `end`. Throws Error(unsupported) for a rule that calls itself before it
  /// consumes anything, Error(invalid_argument) when nothing follows the grammar.
  [[nodiscard]] Grammar finish(StateId start, StateId end);

 private:
  void add_whole_number(StateId from, int max_digits, StateId end);
  void add_naturals(StateId from, int64_t least, int64_t most, StateId end);
  void add_digit_range(StateId from, std::string_view least, std::string_view most, StateId end);
  void add_fraction(StateId from, int max_digits, StateId end);
  void add_fraction_above_zero(StateId from, int max_digits, StateId end);
  void add_magnitudes(StateId from, const Bounds& bounds, StateId end);
  void make_value_rules();
  void refuse_left_recursion() const;
  void shorten_jumps();
  void measure_depth();
  void drop_dead_ends();

  Grammar grammar_;
  uint32_t num_patterns_ = 0;
  StateId white_space_rule_ = kUnlimited;
  StateId value_rule_ = kUnlimited;
  StateId object_rule_ = kUnlimited;
};

}  // namespace glimpse
