#include "text/grammar_masks.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/check.h"

namespace glimpse {
namespace {

constexpr size_t kMaxStacks = 20'000;
// Of sixteen bytes: patterns beyond either limit share what is made last.
constexpr size_t kMaxPatternNodes = 400'000;
constexpr size_t kMaxPatternTokens = 8;

}  // namespace

GrammarMasks::GrammarMasks(Grammar grammar, std::shared_ptr<const TokenIndex> index,
                           std::vector<TokenId> stop_tokens)
    : grammar_(std::move(grammar)),
      index_(std::move(index)),
      stop_tokens_(std::move(stop_tokens)),
      matcher_(grammar_),
      start_(matcher_.start()),
      levels_(TokenTrie::kMaxBytes + 1),
      next_bytes_(TokenTrie::kMaxBytes + 1) {
  check(!stop_tokens_.empty(), "an answer cannot end");
  uint32_t num_patterns = 0;
  for (const GrammarState& state : grammar_.states) {
    num_patterns = std::max(num_patterns, state.pattern);
  }
  size_t num_nodes = 0;
  for (uint32_t first = 1; first <= num_patterns;) {
    const bool is_last =
        num_nodes > kMaxPatternNodes || pattern_tokens_.size() + 1 == kMaxPatternTokens;
    const uint32_t last = is_last ? num_patterns : first;
    pattern_tokens_.emplace_back(grammar_, *index_, first, last);
    num_nodes += pattern_tokens_.back().num_nodes();
    first = last + 1;
  }
}

bool GrammarMasks::is_stop(TokenId token) const {
  return std::find(stop_tokens_.begin(), stop_tokens_.end(), token) != stop_tokens_.end();
}

std::shared_ptr<const TokenMask> GrammarMasks::stop_mask() const {
  TokenMask mask(index_->mask_words(), 0);
  for (const TokenId stop : stop_tokens_) allow(mask, stop);
  return std::make_shared<const TokenMask>(std::move(mask));
}

GrammarPositions GrammarMasks::after(const GrammarPositions& from, TokenId token) {
  if (matcher_.num_stacks() > kMaxStacks) is_worn_ = true;
  GrammarPositions next;
  if (index_->tokenizer().is_added(token)) {
    matcher_.step_token(from, token, next);
    return next;
  }
  GrammarPositions current = from;
  for (const char c : index_->tokenizer().token_bytes(token)) {
    matcher_.step(current, static_cast<uint8_t>(c), next);
    std::swap(current, next);
  }
  return current;
}

std::shared_ptr<const TokenMask> GrammarMasks::mask(const GrammarPositions& positions) {
  constexpr size_t kMaxMasks = 128;  // 19 KB each for 151,936 tokens
  if (const auto known = masks_.find(positions); known != masks_.end()) return known->second;
  if (masks_.size() >= kMaxMasks) masks_.clear();
  auto mask = std::make_shared<const TokenMask>(compute(positions));
  if (std::all_of(mask->begin(), mask->end(), [](uint32_t word) { return word == 0; })) {
    throw Error(ErrorCode::unsupported, "no token of this tokenizer can go on with the answer",
                "the schema needs bytes that the tokenizer cannot write");
  }
  return masks_.emplace(positions, std::move(mask)).first->second;
}

TokenMask GrammarMasks::compute(const GrammarPositions& positions) {
  TokenMask mask(index_->mask_words(), 0);
  GrammarPositions others;
  for (const GrammarPosition& position : positions) {
    if (matcher_.is_string(position)) {
      allow_string_tokens(position, mask);
    } else if (matcher_.pattern_of(position) != 0) {
      allow_pattern_tokens(position, mask);
    } else {
      others.push_back(position);
    }
  }
  for (const TokenId token : matcher_.added_tokens(others)) allow(mask, token);
  walk(index_->trie(), others, [&](const TokenTrie::Entry& entry) { allow(mask, entry.token); });
  if (GrammarMatcher::is_complete(positions)) {
    for (const TokenId stop : stop_tokens_) allow(mask, stop);
  }
  return mask;
}

// ---- inside strings ---------------------------------------------------------------------------

void GrammarMasks::allow_string_tokens(const GrammarPosition& position, TokenMask& mask) {
  const StringTokens& tokens = index_->string_tokens(position.inside);
  const GrammarState& string = grammar_.states[position.state];
  const uint32_t limit = string.max_length - position.length;
  const auto allow_all = [&](const TokenMask& more) {
    for (size_t i = 0; i < mask.size(); ++i) mask[i] |= more[i];
  };
  if (tokens.by_length.empty() || tokens.by_length.front().length <= limit) {
    allow_all(tokens.inside);
  } else if (position.inside == StringStep::kPlain && limit < TokenIndex::kShort) {
    allow_all(index_->short_tokens(limit));
  } else {
    TokenMask fitting = tokens.inside;
    for (const TokenTrie::Entry& entry : tokens.by_length) {
      if (entry.length <= limit) break;
      forbid(fitting, entry.token);
    }
    allow_all(fitting);
  }
  allow_closing_tokens(position, mask);
}

void GrammarMasks::allow_closing_tokens(const GrammarPosition& position, TokenMask& mask) {
  const StringTokens& tokens = index_->string_tokens(position.inside);
  const GrammarState& string = grammar_.states[position.state];
  const auto allow_fitting = [&](const TokenTrie::Entry& entry) {
    const uint64_t length = uint64_t{position.length} + entry.length;
    if (length >= string.min_length && length <= string.max_length) allow(mask, entry.token);
  };
  for (const TokenTrie::Entry& entry : tokens.just_close) allow_fitting(entry);
  GrammarPositions after;
  matcher_.close_string(position, after);
  walk(tokens.closing, after, allow_fitting);
}

void GrammarMasks::allow_pattern_tokens(const GrammarPosition& position, TokenMask& mask) {
  TokenMask closing(index_->mask_words(), 0);
  const std::optional<StateId> before_quote =
      pattern_tokens_[std::min<size_t>(matcher_.pattern_of(position), pattern_tokens_.size()) - 1]
          .allow_tokens(position.state, mask, closing);
  if (!before_quote) return;
  GrammarPositions after;
  matcher_.step({{position.stack, *before_quote, 0, 0}}, '"', after);
  const uint8_t inside = grammar_.states[position.state].inside;
  walk(index_->string_tokens(inside).closing, after, [&](const TokenTrie::Entry& entry) {
    const auto id = static_cast<size_t>(entry.token);
    if ((closing[id / 32] >> (id % 32) & 1U) != 0) allow(mask, entry.token);
  });
}

// ---- walking the trie -------------------------------------------------------------------------

// Calls `visit` with every entry of `trie` whose bytes lead somewhere from `from`.
template <typename Visit>
void GrammarMasks::walk(const TokenTrie& trie, const GrammarPositions& from, Visit visit) {
  levels_[0].clear();
  for (const GrammarPosition& position : from) {
    if (matcher_.is_string(position)) {
      walk_string(trie, 0, trie.num_nodes(), position, visit);
    } else {
      levels_[0].push_back(position);
    }
  }
  if (!levels_[0].empty()) walk_nodes(trie, 0, trie.num_nodes(), visit);
}

// Nodes first..end are all that is below one node, whose positions stand in levels_.
template <typename Visit>
void GrammarMasks::walk_nodes(const TokenTrie& trie, uint32_t first, uint32_t end, Visit visit) {
  if (first >= end) return;
  const size_t above = trie.nodes[first].depth - 1U;
  next_bytes_[above] = matcher_.possible_bytes(levels_[above]);
  for (uint32_t i = first; i < end;) {
    const TokenTrie::Node& node = trie.nodes[i];
    const uint64_t next_bytes = next_bytes_[node.depth - 1U][node.byte / 64];
    GrammarPositions& here = levels_[node.depth];
    here.clear();
    if ((next_bytes >> (node.byte % 64) & 1U) != 0) {
      matcher_.step(levels_[node.depth - 1U], node.byte, here);
    }
    if (here.empty()) {
      i = node.end;
      continue;
    }
    for (const TokenTrie::Entry& entry : trie.entries_at(i)) visit(entry);
    if (i + 1 == node.end) {
      i = node.end;
      continue;
    }
    // Strings have a faster way through what is below; it writes deeper levels only.
    const auto strings = std::stable_partition(
        here.begin(), here.end(),
        [&](const GrammarPosition& position) { return !matcher_.is_string(position); });
    if (strings != here.end()) {
      const GrammarPositions within(strings, here.end());
      here.erase(strings, here.end());
      for (const GrammarPosition& position : within) {
        walk_string(trie, i + 1, node.end, position, visit);
      }
    }
    if (here.empty()) {
      i = node.end;
      continue;
    }
    next_bytes_[node.depth] = matcher_.possible_bytes(here);
    ++i;
  }
}

template <typename Visit>
void GrammarMasks::walk_string(const TokenTrie& trie, uint32_t first, uint32_t end,
                               const GrammarPosition& position, Visit visit) {
  if (first >= end) return;
  const GrammarState& string = grammar_.states[position.state];
  const size_t base = trie.nodes[first].depth;
  std::array<GrammarPosition, TokenTrie::kMaxBytes + 1> path;  // by depth
  path[base - 1] = position;
  for (uint32_t i = first; i < end;) {
    const TokenTrie::Node& node = trie.nodes[i];
    const GrammarPosition& before = path[node.depth - 1U];
    const StringStep step = string_step(before.inside, node.byte);
    bool goes_on = false;
    if (step.kind == StringStep::Kind::inside) {
      path[node.depth] = matcher_.within_string(before, step);
      goes_on = path[node.depth].length <= string.max_length;
      if (goes_on) {
        for (const TokenTrie::Entry& entry : trie.entries_at(i)) visit(entry);
      }
    } else if (step.kind == StringStep::Kind::closed && before.length >= string.min_length) {
      for (const TokenTrie::Entry& entry : trie.entries_at(i)) visit(entry);
      if (i + 1 < node.end) {
        matcher_.close_string(position, levels_[node.depth]);
        walk_nodes(trie, i + 1, node.end, visit);
      }
    }
    i = goes_on ? i + 1 : node.end;
  }
}

}  // namespace glimpse
