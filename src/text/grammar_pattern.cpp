#include "text/grammar_pattern.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "base/check.h"
#include "text/json_string.h"
#include "text/unicode.h"

namespace glimpse {
namespace {

constexpr size_t kMaxPatternStates = 20'000;

struct Utf8Range {
  std::array<CodePointRange, 4> bytes;  // of each byte
  size_t length;
};

// Splits a range of characters into ranges whose bytes are independent of one another.
void add_utf8_ranges(char32_t first, char32_t last, std::vector<Utf8Range>& out) {
  for (const char32_t limit : {0x7FU, 0x7FFU, 0xD7FFU, 0xFFFFU}) {
    if (first <= limit && last > limit) {
      add_utf8_ranges(first, limit, out);
      return add_utf8_ranges(limit + 1, last, out);
    }
  }
  const size_t length = last <= 0x7F ? 1 : last <= 0x7FF ? 2 : last <= 0xFFFF ? 3 : 4;
  // Where the lower bytes do not run through all their values, the higher ones must not vary.
  for (size_t i = 1; i < length; ++i) {
    const char32_t lower = (char32_t{1} << (6 * i)) - 1;
    if ((first & ~lower) == (last & ~lower)) continue;
    if ((first & lower) != 0) {
      add_utf8_ranges(first, first | lower, out);
      return add_utf8_ranges((first | lower) + 1, last, out);
    }
    if ((last & lower) != lower) {
      add_utf8_ranges(first, (last & ~lower) - 1, out);
      return add_utf8_ranges(last & ~lower, last, out);
    }
  }
  std::string low;
  std::string high;
  append_utf8(low, first);
  append_utf8(high, last);
  Utf8Range range{.bytes = {}, .length = length};
  for (size_t i = 0; i < length; ++i) {
    range.bytes[i] = {static_cast<uint8_t>(low[i]), static_cast<uint8_t>(high[i])};
  }
  out.push_back(range);
}

class Writer {
 public:
  Writer(GrammarBuilder& builder, const RegexAutomaton& automaton, uint32_t least, uint32_t most)
      : builder_(builder),
        automaton_(automaton),
        least_(least),
        most_(most),
        pattern_(builder.new_pattern()),
        close_(builder.new_state()) {}

  StateId write(StateId from) {
    builder_.jump(builder_.literal(from, "\""), state_of({0, 0}));
    while (!open_.empty()) {
      const auto [place, id] = open_.back();
      open_.pop_back();
      add_edges(place, id);
    }
    return close_;
  }

 private:
  struct Place {
    uint32_t state;  // the automaton's
    uint32_t length;
    friend auto operator<=>(const Place&, const Place&) = default;
  };
  // Bytes within a character, and where they lead.
  using Edges = std::vector<std::tuple<uint8_t, uint8_t, StateId>>;
  using Tail = std::pair<Utf8Range, StateId>;

  StateId new_state(uint8_t inside) {
    if (++num_states_ > kMaxPatternStates) {
      throw Error(
          ErrorCode::unsupported,
          fmt::format("the pattern needs more than {} states with its length", kMaxPatternStates),
          "lower maxLength, or leave the length to the pattern");
    }
    const StateId id = builder_.new_state();
    builder_.state(id).pattern = pattern_;
    builder_.state(id).inside = inside;
    return id;
  }

  StateId state_of(Place place) {
    const auto known = places_.find(place);
    if (known != places_.end()) return known->second;
    const StateId id = new_state(StringStep::kPlain);
    places_.emplace(place, id);
    open_.emplace_back(place, id);
    return id;
  }

  void add_edges(Place place, StateId id) {
    const RegexAutomaton::State& state = automaton_.states[place.state];
    if (state.accepts && place.length >= least_) builder_.edge(id, '"', close_);
    if (place.length >= most_) return;
    // Without an upper limit, lengths beyond the lower one are all alike.
    const uint32_t length =
        most_ == kUnlimited ? std::min(place.length + 1, least_) : place.length + 1;
    Edges escapes;
    std::vector<Tail> tails;
    for (const RegexAutomaton::Edge& edge : state.edges) {
      const StateId target = state_of({edge.target, length});
      add_ascii(id, edge.range, target, escapes);
      const char32_t first = std::max<char32_t>(edge.range.first, 0x80);
      const auto add_tails = [&](char32_t least, char32_t most) {
        std::vector<Utf8Range> ranges;
        if (least <= most) add_utf8_ranges(least, most, ranges);
        for (const Utf8Range& range : ranges) tails.emplace_back(range, target);
      };
      add_tails(first, std::min<char32_t>(edge.range.last, 0xD7FF));  // no surrogates
      add_tails(std::max<char32_t>(first, 0xE000), edge.range.last);
    }
    if (!escapes.empty()) builder_.edge(id, '\\', within_character(std::move(escapes), '\\', 0));
    for (const auto& [low, high, target] : first_bytes(tails, 0, StringStep::kPlain)) {
      builder_.edge(id, static_cast<char>(low), static_cast<char>(high), target);
    }
  }

  void add_ascii(StateId id, CodePointRange range, StateId target, Edges& escapes) {
    constexpr std::pair<char, char> kEscapes[] = {
        {'"', '"'}, {'\\', '\\'}, {'b', '\b'}, {'f', '\f'}, {'n', '\n'}, {'r', '\r'}, {'t', '\t'}};
    for (const auto& [letter, meant] : kEscapes) {
      const auto c = static_cast<char32_t>(meant);
      const auto byte = static_cast<uint8_t>(letter);
      if (c >= range.first && c <= range.last) escapes.emplace_back(byte, byte, target);
    }
    for (const CodePointRange plain : {CodePointRange{' ', '!'}, {'#', '['}, {']', 0x7F}}) {
      const char32_t first = std::max(range.first, plain.first);
      const char32_t last = std::min(range.last, plain.last);
      if (first <= last) {
        builder_.edge(id, static_cast<char>(first), static_cast<char>(last), target);
      }
    }
  }

  // What the bytes number `at` of `tails` lead to; the tails agree in those before.
  Edges first_bytes(const std::vector<Tail>& tails, size_t at, uint8_t inside) {
    Edges edges;
    for (size_t i = 0; i < tails.size();) {
      const CodePointRange bytes = tails[i].first.bytes[at];
      const auto low = static_cast<uint8_t>(bytes.first);
      const auto high = static_cast<uint8_t>(bytes.last);
      if (at + 1 == tails[i].first.length) {
        edges.emplace_back(low, high, tails[i].second);
        ++i;
        continue;
      }
      std::vector<Tail> same;
      for (; i < tails.size() && tails[i].first.bytes[at] == bytes; ++i) same.push_back(tails[i]);
      // E0, ED, F0 and F4 stand alone or not at all: their second bytes are other ones.
      const uint8_t next = string_step(inside, low).next;
      edges.emplace_back(low, high, within_character(first_bytes(same, at + 1, next), low, inside));
    }
    return edges;
  }

  // The state after `byte`, from which `edges` lead on: one for all that have the same.
  StateId within_character(Edges edges, uint8_t byte, uint8_t inside) {
    const uint8_t next = string_step(inside, byte).next;
    const auto known = within_.find({next, edges});
    if (known != within_.end()) return known->second;
    const StateId id = new_state(next);
    for (const auto& [low, high, target] : edges) {
      builder_.edge(id, static_cast<char>(low), static_cast<char>(high), target);
    }
    within_.emplace(std::pair(next, std::move(edges)), id);
    return id;
  }

  GrammarBuilder& builder_;
  const RegexAutomaton& automaton_;
  uint32_t least_;
  uint32_t most_;
  uint32_t pattern_;
  StateId close_;
  size_t num_states_ = 0;
  std::map<Place, StateId> places_;
  std::vector<std::pair<Place, StateId>> open_;
  std::map<std::pair<uint8_t, Edges>, StateId> within_;
};

}  // namespace

StateId add_pattern(GrammarBuilder& builder, StateId from, const RegexAutomaton& automaton,
                    uint32_t least, uint32_t most) {
  // Whatever is a match from its beginning says nothing beside the length.
  if (automaton.states.front().is_settled) return builder.string(from, least, most);
  return Writer(builder, automaton, least, most).write(from);
}

}  // namespace glimpse
