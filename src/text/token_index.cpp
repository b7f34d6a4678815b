#include "text/token_index.h"

#include <algorithm>

namespace glimpse {
namespace {

/// What `bytes` do from a state inside a string.
struct Passage {
  StringStep::Kind kind = StringStep::Kind::inside;
  uint32_t length = 0;  // characters begun
  size_t consumed = 0;  // bytes up to and with the closing quote
};

Passage pass(uint8_t inside, std::string_view bytes) {
  Passage passage;
  for (const char c : bytes) {
    const StringStep step = string_step(inside, static_cast<uint8_t>(c));
    ++passage.consumed;
    passage.kind = step.kind;
    if (step.kind != StringStep::Kind::inside) break;
    passage.length += step.begun;
    inside = step.next;
  }
  return passage;
}

}  // namespace

TokenTrie TokenTrie::build(std::vector<Text> texts) {
  std::sort(texts.begin(), texts.end(),
            [](const Text& a, const Text& b) { return a.bytes < b.bytes; });
  TokenTrie trie;
  std::vector<uint32_t> path;  // nodes of the last text
  std::string_view last;
  const auto close_to = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      trie.nodes[path.back()].end = static_cast<uint32_t>(trie.nodes.size());
    }
  };
  for (const Text& text : texts) {
    const auto differs =
        std::mismatch(last.begin(), last.end(), text.bytes.begin(), text.bytes.end());
    close_to(static_cast<size_t>(differs.first - last.begin()));
    while (path.size() < text.bytes.size()) {
      const auto byte = static_cast<uint8_t>(text.bytes[path.size()]);
      path.push_back(static_cast<uint32_t>(trie.nodes.size()));
      trie.nodes.push_back({.byte = byte,
                            .depth = static_cast<uint8_t>(path.size()),
                            .end = 0,
                            .first_entry = static_cast<uint32_t>(trie.entries.size())});
    }
    trie.entries.push_back(text.entry);
    last = text.bytes;
  }
  close_to(0);
  trie.nodes.push_back({0, 0, 0, static_cast<uint32_t>(trie.entries.size())});
  return trie;
}

TokenIndex::TokenIndex(const Tokenizer& tokenizer, TokenId vocabulary_size)
    : tokenizer_(&tokenizer), mask_words_((static_cast<size_t>(vocabulary_size) + 31) / 32) {
  std::vector<TokenTrie::Text> texts;
  for (TokenId id = 0; id < std::min(vocabulary_size, tokenizer.vocabulary_size()); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    const bool is_usable = !bytes.empty() && bytes.size() <= TokenTrie::kMaxBytes;
    if (is_usable && !tokenizer.is_added(id)) texts.push_back({bytes, {id, 0}});
  }
  for (uint8_t inside = 0; inside < StringStep::kStates; ++inside) {
    sort_string_tokens(inside, texts);
  }
  for (uint32_t limit = 0; limit < kShort; ++limit) {
    short_[limit].assign(mask_words_, 0);
    for (const TokenTrie::Entry& entry : strings_[StringStep::kPlain].by_length) {
      if (entry.length <= limit) allow(short_[limit], entry.token);
    }
  }
  trie_ = TokenTrie::build(std::move(texts));
}

void TokenIndex::sort_string_tokens(uint8_t inside, std::span<const TokenTrie::Text> texts) {
  StringTokens& tokens = strings_[inside];
  tokens.inside.assign(mask_words_, 0);
  std::vector<TokenTrie::Text> closing;
  for (const TokenTrie::Text& text : texts) {
    const Passage passage = pass(inside, text.bytes);
    const TokenTrie::Entry entry{text.entry.token, passage.length};
    if (passage.kind == StringStep::Kind::inside) {
      allow(tokens.inside, entry.token);
      tokens.by_length.push_back(entry);
    } else if (passage.kind == StringStep::Kind::closed) {
      const std::string_view rest = text.bytes.substr(passage.consumed);
      if (rest.empty()) {
        tokens.just_close.push_back(entry);
      } else {
        closing.push_back({rest, entry});
      }
    }
  }
  std::stable_sort(tokens.by_length.begin(), tokens.by_length.end(),
                   [](const auto& a, const auto& b) { return a.length > b.length; });
  tokens.closing = TokenTrie::build(std::move(closing));
}

}  // namespace glimpse
