#include "text/pattern_tokens.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "base/check.h"

namespace glimpse {
namespace {

constexpr size_t kMaxTable = 8'000'000;  // entries of four bytes
constexpr size_t kManyTokens = 2'000;    // a whole mask is added in about the same time

using Bytes = std::array<uint64_t, 4>;

bool holds(const Bytes& bytes, size_t byte) {
  return (bytes[byte / 64] >> (byte % 64) & 1U) != 0;
}

void add_bytes(Bytes& bytes, const GrammarState::Edge& edge) {
  for (size_t byte = edge.first; byte <= edge.last; ++byte) {
    bytes[byte / 64] |= uint64_t{1} << (byte % 64);
  }
}

}  // namespace

void PatternTokens::number_states(const Grammar& grammar, uint32_t first_pattern,
                                  uint32_t last_pattern) {
  number_of_.assign(grammar.states.size(), kRefused);
  for (StateId id = 0; id < grammar.states.size(); ++id) {
    const uint32_t pattern = grammar.states[id].pattern;
    if (pattern < first_pattern || pattern > last_pattern) continue;
    number_of_[id] = static_cast<uint32_t>(states_.size());
    states_.push_back(id);
    inside_.push_back(grammar.states[id].inside);
  }
}

// Bytes are in one class when every state goes on with all of them in the same way.
void PatternTokens::sort_bytes_into_classes(const Grammar& grammar) {
  std::array<std::set<Bytes>, StringStep::kStates> told_apart;
  std::array<Bytes, StringStep::kStates> known{};  // bytes that some state goes on with
  told_apart[StringStep::kPlain].insert(Bytes{uint64_t{1} << '"'});
  for (const StateId id : states_) {
    const GrammarState& state = grammar.states[id];
    std::vector<GrammarState::Edge> edges = state.edges;
    std::stable_sort(edges.begin(), edges.end(),
                     [](const auto& a, const auto& b) { return a.target < b.target; });
    for (size_t i = 0; i < edges.size();) {
      Bytes bytes{};
      const StateId target = edges[i].target;
      for (; i < edges.size() && edges[i].target == target; ++i) {
        add_bytes(bytes, edges[i]);
        add_bytes(known[state.inside], edges[i]);
      }
      told_apart[state.inside].insert(bytes);
    }
  }
  for (size_t inside = 0; inside < classes_.size(); ++inside) {
    std::map<std::vector<bool>, uint8_t> numbers;
    for (size_t byte = 0; byte < 256; ++byte) {
      std::vector<bool> membership;
      for (const Bytes& bytes : told_apart[inside]) membership.push_back(holds(bytes, byte));
      const auto next = static_cast<uint8_t>(numbers.size());
      classes_[inside][byte] = holds(known[inside], byte)
                                   ? numbers.emplace(std::move(membership), next).first->second
                                   : kNoClass;
    }
    num_classes_[inside] = numbers.size();
  }
}

// A row is what the state may have to refuse later, and the next state by class.
void PatternTokens::fill_table(const Grammar& grammar) {
  for (uint32_t i = 0; i < states_.size(); ++i) {
    if (next_.size() + num_classes(i) + 1 > kMaxTable) {
      throw Error(
          ErrorCode::unsupported,
          fmt::format("the schema's patterns need a table of more than {} entries", kMaxTable),
          "use fewer patterns, or lower their repeats and lengths");
    }
    next_.push_back(0);
    rows_.push_back(static_cast<uint32_t>(next_.size()));
    next_.resize(next_.size() + num_classes(i), kRefused);
    for (const GrammarState::Edge& edge : grammar.states[states_[i]].edges) {
      for (size_t byte = edge.first; byte <= edge.last; ++byte) {
        const uint32_t target = number_of_[edge.target];
        next_[rows_[i] + classes_[inside_[i]][byte]] = target == kRefused ? kClosed : target;
      }
    }
  }
}

// Which classes of bytes are refused by a state that can be reached from each; they have a bit
// each, or share the last one.
void PatternTokens::find_refusals() {
  std::vector<ClassBits> refusals(states_.size(), kMustBeWalked);
  std::vector<std::vector<uint32_t>> sources(states_.size());
  ClassBits next_bit = 1;
  const auto visit_classes = [&](uint32_t i, auto visit) {
    for (size_t number = 0; number < num_classes(i); ++number) {
      const bool is_quote =
          inside_[i] == StringStep::kPlain && number == classes_[StringStep::kPlain]['"'];
      if (!is_quote) visit(next_[rows_[i] + number], class_bits_[inside_[i]][number]);
    }
  };
  for (uint32_t i = 0; i < states_.size(); ++i) {
    visit_classes(i, [&](uint32_t next, ClassBits& bit) {
      if (next != kRefused) return sources[next].push_back(i);
      if (bit == 0) {
        bit = next_bit;
        if (next_bit < kLastClassBit) next_bit <<= 1U;
      }
      refusals[i] |= bit;
    });
  }
  std::vector<uint32_t> open(states_.size());
  std::iota(open.begin(), open.end(), 0U);
  while (!open.empty()) {
    const uint32_t i = open.back();
    open.pop_back();
    for (const uint32_t source : sources[i]) {
      const ClassBits all = refusals[source] | refusals[i];
      if (all != refusals[source]) open.push_back(source);
      refusals[source] = all;
    }
  }
  for (uint32_t& next : next_) {
    if (next != kRefused && next != kClosed) next = rows_[next];
  }
  for (uint32_t i = 0; i < states_.size(); ++i) next_[rows_[i] - 1] = refusals[i];
}

// ---- the trie -----------------------------------------------------------------------------------

class PatternTokens::TrieBuilder {
 public:
  TrieBuilder(PatternTokens& tokens, const TokenIndex& index, uint8_t inside)
      : tokens_(tokens), index_(index), nodes_(1) {
    nodes_[0].inside = inside;
  }

  Trie build() {
    sort_tokens();
    trie_.inside.assign(index_.mask_words(), 0);
    trie_.nodes.reserve(nodes_.size());
    trie_.classes = write_below(0, 0).classes;
    trie_.nodes.push_back(new_node(0, 0));
    return std::move(trie_);
  }

 private:
  static constexpr uint32_t kNone = 0xFFFF'FFFF;
  struct Draft {
    uint32_t first_child = kNone;
    uint32_t sibling = kNone;
    uint8_t byte_class = 0;
    uint8_t inside = 0;  // after its byte
    bool is_quote = false;
    std::vector<TokenId> entries;
    std::vector<TokenId> closing;
  };

  uint32_t child_of(uint32_t parent, uint8_t byte_class) {
    for (uint32_t id = nodes_[parent].first_child; id != kNone; id = nodes_[id].sibling) {
      if (nodes_[id].byte_class == byte_class) return id;
    }
    const auto id = static_cast<uint32_t>(nodes_.size());
    Draft& made = nodes_.emplace_back();
    made.byte_class = byte_class;
    made.sibling = nodes_[parent].first_child;
    nodes_[parent].first_child = id;
    return id;
  }

  void sort_tokens() {
    const TokenTrie& trie = index_.trie();
    std::array<uint32_t, TokenTrie::kMaxBytes + 1> path;  // by depth
    path[0] = 0;
    for (uint32_t i = 0; i < trie.num_nodes();) {
      const TokenTrie::Node& node = trie.nodes[i];
      const uint32_t parent = path[node.depth - 1U];
      const uint8_t inside = nodes_[parent].inside;
      const uint8_t byte_class = tokens_.classes_[inside][node.byte];
      if (byte_class == kNoClass) {
        i = node.end;
        continue;
      }
      const uint32_t id = child_of(parent, byte_class);
      Draft& draft = nodes_[id];
      for (const TokenTrie::Entry& entry : trie.entries_at(i)) draft.entries.push_back(entry.token);
      if (inside == StringStep::kPlain && node.byte == '"') {
        draft.is_quote = true;
        const uint32_t last = trie.nodes[node.end].first_entry;
        for (uint32_t at = trie.nodes[i + 1].first_entry; at < last; ++at) {
          draft.closing.push_back(trie.entries[at].token);
        }
        i = node.end;
        continue;
      }
      draft.inside = string_step(inside, node.byte).next;
      path[node.depth] = id;
      ++i;
    }
  }

  [[nodiscard]] Node new_node(uint8_t byte_class, uint8_t depth) const {
    return {.first_entry = static_cast<uint32_t>(trie_.entries.size()),
            .byte_class = byte_class,
            .depth = depth};
  }

  struct Below {
    ClassBits classes = 0;
    bool has_quote = false;
  };
  Below write_below(uint32_t parent, uint8_t depth) {
    Below all;
    for (uint32_t id = nodes_[parent].first_child; id != kNone; id = nodes_[id].sibling) {
      const Draft& draft = nodes_[id];
      const size_t at = trie_.nodes.size();
      trie_.nodes.push_back(new_node(draft.byte_class, static_cast<uint8_t>(depth + 1)));
      const bool has_mask = write_tokens(draft, trie_.nodes[at]);
      const Below below = write_below(id, static_cast<uint8_t>(depth + 1));
      Node& node = trie_.nodes[at];
      node.end = static_cast<uint32_t>(trie_.nodes.size());
      node.below = below.classes | (has_mask || draft.is_quote ? kMustBeWalked : 0);
      node.has_quote = below.has_quote || draft.is_quote;
      all.has_quote |= node.has_quote;
      all.classes |= node.below;
      if (!draft.is_quote) {
        all.classes |= tokens_.class_bits_[nodes_[parent].inside][draft.byte_class];
      }
    }
    return all;
  }

  // Returns whether they became a mask.
  bool write_tokens(const Draft& draft, Node& node) {
    const bool has_many = draft.entries.size() > kManyTokens;
    node.has_more = has_many || !draft.closing.empty();
    if (node.has_more) {
      const auto at = static_cast<uint32_t>(trie_.nodes.size() - 1);
      trie_.more.push_back({at, {}, draft.closing});
    }
    if (has_many) {
      trie_.more.back().mask.assign(index_.mask_words(), 0);
      for (const TokenId token : draft.entries) allow(trie_.more.back().mask, token);
    } else {
      trie_.entries.insert(trie_.entries.end(), draft.entries.begin(), draft.entries.end());
    }
    if (!draft.is_quote) {
      for (const TokenId token : draft.entries) allow(trie_.inside, token);
    }
    return has_many;
  }

  PatternTokens& tokens_;
  const TokenIndex& index_;
  std::vector<Draft> nodes_;  // [0] is the root
  Trie trie_;
};

PatternTokens::PatternTokens(const Grammar& grammar, const TokenIndex& index,
                             uint32_t first_pattern, uint32_t last_pattern) {
  number_states(grammar, first_pattern, last_pattern);
  sort_bytes_into_classes(grammar);
  fill_table(grammar);
  find_refusals();
  for (uint8_t inside = 0; inside < StringStep::kStates; ++inside) {
    if (std::find(inside_.begin(), inside_.end(), inside) == inside_.end()) continue;
    tries_[inside] = TrieBuilder(*this, index, inside).build();
  }
}

const PatternTokens::More& PatternTokens::Trie::more_of(uint32_t node) const {
  return *std::lower_bound(more.begin(), more.end(), node,
                           [](const More& one, uint32_t other) { return one.node < other; });
}

size_t PatternTokens::num_nodes() const {
  size_t count = 0;
  for (const Trie& trie : tries_) count += trie.nodes.size();
  return count;
}

// ---- masks --------------------------------------------------------------------------------------

std::optional<StateId> PatternTokens::allow_tokens(StateId from, TokenMask& mask,
                                                   TokenMask& closing) const {
  const uint32_t start = number_of_[from];
  const Trie& trie = tries_[inside_[start]];
  const auto add_mask = [&](const TokenMask& more) {
    for (size_t i = 0; i < more.size(); ++i) mask[i] |= more[i];
  };
  // Often nothing that stays inside is ever refused: then only quotes are looked for.
  const bool is_total = (trie.classes & next_[rows_[start] - 1] & ~kMustBeWalked) == 0;
  if (is_total) add_mask(trie.inside);
  uint32_t row_before_quote = kRefused;
  std::array<uint32_t, TokenTrie::kMaxBytes + 1> path;  // rows by depth
  path[0] = rows_[start];
  for (uint32_t i = 0; i + 1 < trie.nodes.size();) {
    const Node& node = trie.nodes[i];
    const uint32_t row = path[node.depth - 1U];
    const uint32_t next = next_[row + node.byte_class];
    if (next == kRefused || (is_total && !node.has_quote)) {
      i = node.end;
      continue;
    }
    const bool is_closed = next == kClosed;
    const bool is_all_allowed = !is_total && !is_closed && (node.below & next_[next - 1]) == 0;
    if (!is_total || is_closed) {
      const uint32_t after = is_all_allowed ? node.end : i + 1;
      const uint32_t last = trie.nodes[after].first_entry;
      for (uint32_t at = node.first_entry; at < last; ++at) allow(mask, trie.entries[at]);
      if (node.has_more) {
        const More& more = trie.more_of(i);
        add_mask(more.mask);
        for (const TokenId token : more.closing) allow(closing, token);
        if (!more.closing.empty()) row_before_quote = row;
      }
    }
    path[node.depth] = next;
    i = is_closed || is_all_allowed ? node.end : i + 1;
  }
  if (row_before_quote == kRefused) return std::nullopt;
  const auto at = std::lower_bound(rows_.begin(), rows_.end(), row_before_quote);
  return states_[static_cast<size_t>(at - rows_.begin())];
}

}  // namespace glimpse
