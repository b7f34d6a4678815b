// The masks of one grammar over one tokenizer, each computed when its positions are first met. All
// answers that follow the grammar share them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "text/grammar_matcher.h"
#include "text/pattern_tokens.h"
#include "text/token_index.h"

namespace glimpse {

/// Not thread-safe but for is_worn().
class GrammarMasks {
 public:
  /// The index is shared with the other grammars of the tokenizer. Throws as GrammarMatcher does.
  GrammarMasks(Grammar grammar, std::shared_ptr<const TokenIndex> index,
               std::vector<TokenId> stop_tokens);
  GrammarMasks(const GrammarMasks&) = delete;
  GrammarMasks& operator=(const GrammarMasks&) = delete;

  [[nodiscard]] const GrammarPositions& start() const { return start_; }
  /// Where a token leads; empty when it is not allowed.
  [[nodiscard]] GrammarPositions after(const GrammarPositions& from, TokenId token);
  /// The tokens that may follow, a stop token once the grammar may end. Kept alive by whoever uses
  /// it. Throws Error(unsupported) when no token of the tokenizer can go on.
  [[nodiscard]] std::shared_ptr<const TokenMask> mask(const GrammarPositions& positions);
  /// The stop tokens alone.
  [[nodiscard]] std::shared_ptr<const TokenMask> stop_mask() const;
  [[nodiscard]] bool is_stop(TokenId token) const;
  /// True once so much has been met that new answers should share a fresh object. Thread-safe.
  [[nodiscard]] bool is_worn() const { return is_worn_; }

 private:
  [[nodiscard]] TokenMask compute(const GrammarPositions& positions);
  void allow_string_tokens(const GrammarPosition& position, TokenMask& mask);
  void allow_pattern_tokens(const GrammarPosition& position, TokenMask& mask);
  void allow_closing_tokens(const GrammarPosition& position, TokenMask& mask);
  template <typename Visit>
  void walk(const TokenTrie& trie, const GrammarPositions& from, Visit visit);
  template <typename Visit>
  void walk_nodes(const TokenTrie& trie, uint32_t first, uint32_t end, Visit visit);
  template <typename Visit>
  void walk_string(const TokenTrie& trie, uint32_t first, uint32_t end,
                   const GrammarPosition& position, Visit visit);

  Grammar grammar_;
  std::shared_ptr<const TokenIndex> index_;
  std::vector<TokenId> stop_tokens_;
  GrammarMatcher matcher_;
  std::vector<PatternTokens> pattern_tokens_;
  GrammarPositions start_;
  std::map<GrammarPositions, std::shared_ptr<const TokenMask>> masks_;
  std::atomic<bool> is_worn_ = false;
  // By depth: where the bytes of the walk's path lead, and which bytes may follow.
  std::vector<GrammarPositions> levels_;
  std::vector<GrammarMatcher::Bytes> next_bytes_;
};

}  // namespace glimpse
