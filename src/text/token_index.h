// A tokenizer's ordinary tokens arranged for masks: a trie of their bytes, and what each of them
// does inside a JSON string, where nearly all are allowed. Built once per tokenizer.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "text/json_string.h"
#include "text/tokenizer.h"

namespace glimpse {

/// Bit t % 32 of word t / 32 allows token t.
using TokenMask = std::vector<uint32_t>;

inline void allow(TokenMask& mask, TokenId token) {
  mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (static_cast<size_t>(token) % 32);
}
inline void forbid(TokenMask& mask, TokenId token) {
  mask[static_cast<size_t>(token) / 32] &= ~(uint32_t{1} << (static_cast<size_t>(token) % 32));
}

/// Texts by their bytes, in depth-first order: what begins with a node's bytes follows it directly.
struct TokenTrie {
  struct Node {
    uint8_t byte;
    uint8_t depth;         ///< 1 for a first byte
    uint32_t end;          ///< one past the last node below
    uint32_t first_entry;  ///< entries[first_entry, the next node's first_entry) end here
  };
  struct Entry {
    TokenId token;
    uint32_t length;  ///< characters that the token begins before its bytes in the trie
  };
  struct Text {
    std::string_view bytes;  ///< at most kMaxBytes, not empty
    Entry entry;
  };
  static constexpr size_t kMaxBytes = 255;  // a depth is one byte

  std::vector<Node> nodes;  ///< one that stands for nothing at the end
  std::vector<Entry> entries;

  [[nodiscard]] static TokenTrie build(std::vector<Text> texts);
  [[nodiscard]] uint32_t num_nodes() const { return static_cast<uint32_t>(nodes.size() - 1); }
  [[nodiscard]] std::span<const Entry> entries_at(size_t node) const {
    return std::span(entries).subspan(nodes[node].first_entry,
                                      nodes[node + 1].first_entry - nodes[node].first_entry);
  }
};

/// What tokens do from one state inside a string.
struct StringTokens {
  TokenMask inside;                          ///< those that stay inside
  std::vector<TokenTrie::Entry> by_length;   ///< the same tokens, longest first
  TokenTrie closing;                         ///< those that go on after the quote, by what follows
  std::vector<TokenTrie::Entry> just_close;  ///< those that end with the quote
};

/// Immutable; thread-safe. The tokenizer must outlive it.
class TokenIndex {
 public:
  /// `vocabulary_size` is the model's, which may exceed the tokenizer's: padding is never allowed.
  TokenIndex(const Tokenizer& tokenizer, TokenId vocabulary_size);

  [[nodiscard]] const Tokenizer& tokenizer() const { return *tokenizer_; }
  [[nodiscard]] size_t mask_words() const { return mask_words_; }
  [[nodiscard]] const TokenTrie& trie() const { return trie_; }
  [[nodiscard]] const StringTokens& string_tokens(uint8_t inside) const { return strings_[inside]; }
  /// Tokens that stay inside a string from between two characters and begin at most `limit`
  /// characters, for limits below kShort.
  static constexpr uint32_t kShort = 16;
  [[nodiscard]] const TokenMask& short_tokens(uint32_t limit) const { return short_[limit]; }

 private:
  void sort_string_tokens(uint8_t inside, std::span<const TokenTrie::Text> texts);

  const Tokenizer* tokenizer_;
  size_t mask_words_;
  TokenTrie trie_;
  std::array<StringTokens, StringStep::kStates> strings_;
  std::array<TokenMask, kShort> short_;
};

}  // namespace glimpse
