// What a tokenizer's tokens do inside a grammar's pattern, or several of them. Bytes that the
// patterns do not tell apart are one class, and tokens whose bytes are of the same classes are
// looked at once: a trie of classes is much smaller than one of bytes.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "text/grammar.h"
#include "text/json_string.h"
#include "text/token_index.h"

namespace glimpse {

/// Immutable; thread-safe.
class PatternTokens {
 public:
  /// Throws Error(unsupported) for patterns that need too large a table.
  PatternTokens(const Grammar& grammar, const TokenIndex& index, uint32_t first_pattern,
                uint32_t last_pattern);

  /// Allows the tokens that stay inside from a state of a pattern, and those that end with its
  /// closing quote. Adds tokens that go on after the quote to `closing`, and returns a state that
  /// the quote may follow if there are any.
  [[nodiscard]] std::optional<StateId> allow_tokens(StateId from, TokenMask& mask,
                                                    TokenMask& closing) const;

  /// How much was built.
  [[nodiscard]] size_t num_nodes() const;

 private:
  // Classes of bytes that some state refuses.
  using ClassBits = uint32_t;
  static constexpr ClassBits kLastClassBit = ClassBits{1} << 30U;
  static constexpr ClassBits kMustBeWalked = ClassBits{1} << 31U;  // never allowed as a whole

  struct Node {
    uint32_t end = 0;          // one past the last node below
    uint32_t first_entry = 0;  // tokens that end here
    ClassBits below = 0;
    uint8_t byte_class = 0;
    uint8_t depth = 0;       // 1 for a first byte
    bool has_quote = false;  // this or one below it is a closing quote
    bool has_more = false;
  };
  // What few nodes have; the nodes stay small, because many of them are passed.
  struct More {
    uint32_t node;
    TokenMask mask;                // instead of very many tokens; empty: none
    std::vector<TokenId> closing;  // tokens that go on after the quote that the node is
  };
  // Tokens from one state inside a string, classes in depth-first order.
  struct Trie {
    std::vector<Node> nodes;  // one that stands for nothing at the end
    std::vector<TokenId> entries;
    std::vector<More> more;  // sorted by node
    ClassBits classes = 0;
    TokenMask inside;  // all that stay inside
    [[nodiscard]] const More& more_of(uint32_t node) const;
  };
  class TrieBuilder;

  static constexpr uint8_t kNoClass = 255;           // no pattern goes on with such a byte
  static constexpr uint32_t kRefused = 0xFFFF'FFFF;  // in next_
  static constexpr uint32_t kClosed = 0xFFFF'FFFE;

  void number_states(const Grammar& grammar, uint32_t first_pattern, uint32_t last_pattern);
  void sort_bytes_into_classes(const Grammar& grammar);
  void fill_table(const Grammar& grammar);
  void find_refusals();
  [[nodiscard]] size_t num_classes(uint32_t state) const { return num_classes_[inside_[state]]; }

  std::vector<StateId> states_;      // the grammar's, of those that belong to patterns
  std::vector<uint32_t> number_of_;  // the other way round
  std::vector<uint8_t> inside_;      // by number: StringStep's state
  std::array<std::array<uint8_t, 256>, StringStep::kStates> classes_{};
  std::array<size_t, StringStep::kStates> num_classes_{};
  std::array<std::array<ClassBits, 256>, StringStep::kStates> class_bits_{};
  std::vector<uint32_t> rows_;  // by number: where its part of next_ begins
  std::vector<uint32_t> next_;  // by class: the row that comes next; before each row: ClassBits
  std::array<Trie, StringStep::kStates> tries_;
};

}  // namespace glimpse
