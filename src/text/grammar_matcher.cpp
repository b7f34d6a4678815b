#include "text/grammar_matcher.h"

#include <algorithm>

#include "base/check.h"

namespace glimpse {

GrammarMatcher::GrammarMatcher(const Grammar& grammar)
    : grammar_(&grammar),
      stacks_{{0, 0, 0}},
      pushed_on_(1),
      closure_index_(grammar.states.size(), -1) {}

uint32_t GrammarMatcher::push(uint32_t below, StateId resume) {
  for (const uint32_t known : pushed_on_[below]) {
    if (stacks_[known].resume == resume) return known;
  }
  const auto made = static_cast<uint32_t>(stacks_.size());
  stacks_.push_back({below, resume, stacks_[below].depth + 1});
  pushed_on_.emplace_back();
  pushed_on_[below].push_back(made);
  return made;
}

const GrammarMatcher::Closure& GrammarMatcher::closure_of(StateId state) {
  int32_t& index = closure_index_[state];
  if (index >= 0) return closures_[static_cast<size_t>(index)];
  index = static_cast<int32_t>(closures_.size());
  Closure& closure = closures_.emplace_back();
  std::vector<StateId> open{state};
  std::vector<bool> is_known;
  if (!grammar_->states[state].jumps.empty()) is_known.resize(grammar_->states.size());
  if (!is_known.empty()) is_known[state] = true;
  while (!open.empty()) {
    const StateId id = open.back();
    open.pop_back();
    const GrammarState& at = grammar_->states[id];
    if (at.is_string || at.token >= 0 || !at.edges.empty()) closure.stops.push_back(id);
    closure.calls.insert(closure.calls.end(), at.calls.begin(), at.calls.end());
    closure.ends_rule |= at.ends_rule;
    for (const StateId next : at.jumps) {
      if (!is_known[next]) open.push_back(next);
      is_known[next] = true;
    }
  }
  std::sort(closure.stops.begin(), closure.stops.end());
  return closure;
}

bool GrammarMatcher::fits(uint32_t stack, StateId state) const {
  return stacks_[stack].depth + grammar_->states[state].needed_depth <= Grammar::kMaxDepth;
}

void GrammarMatcher::expect(Place place) {
  constexpr size_t kMaxPlaces = 1000;
  if (!fits(place.stack, place.state)) return;
  if (std::find(places_.begin(), places_.end(), place) != places_.end()) return;
  if (places_.size() == kMaxPlaces) {
    throw Error(
        ErrorCode::unsupported,
        fmt::format("the schema allows more than {} ways to go on at one place", kMaxPlaces),
        "describe fewer alternatives, or let them differ earlier");
  }
  places_.push_back(place);
}

// Adds a place and all that it reaches without a byte.
void GrammarMatcher::add(Place place, GrammarPositions& out) {
  const GrammarState& first = grammar_->states[place.state];
  if (first.jumps.empty() && first.calls.empty() && !first.ends_rule) {
    if (fits(place.stack, place.state)) out.push_back({place.stack, place.state, 0, 0});
    return;
  }
  places_.clear();
  expect(place);
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place at = places_[i];
    const Closure& closure = closure_of(at.state);
    for (const StateId stop : closure.stops) {
      if (fits(at.stack, stop)) out.push_back({at.stack, stop, 0, StringStep::kPlain});
    }
    for (const GrammarState::Call& call : closure.calls) {
      if (fits(at.stack, call.resume)) expect({push(at.stack, call.resume), call.rule});
    }
    if (!closure.ends_rule) continue;
    if (at.stack == 0) {
      out.push_back({0, kEnd, 0, 0});
    } else {
      expect({stacks_[at.stack].below, stacks_[at.stack].resume});
    }
  }
}

void GrammarMatcher::tidy(GrammarPositions& positions) {
  if (!std::is_sorted(positions.begin(), positions.end())) {
    std::sort(positions.begin(), positions.end());
  }
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
}

GrammarPositions GrammarMatcher::start() {
  GrammarPositions result;
  add({0, grammar_->start}, result);
  tidy(result);
  return result;
}

GrammarPosition GrammarMatcher::within_string(GrammarPosition position, StringStep step) const {
  const GrammarState& string = grammar_->states[position.state];
  position.inside = step.next;
  // Without an upper limit, places beyond the lower one are all alike.
  const bool counts = string.max_length != kUnlimited || position.length < string.min_length;
  if (counts) position.length += step.begun;
  return position;
}

void GrammarMatcher::step(const GrammarPositions& from, uint8_t byte, GrammarPositions& out) {
  out.clear();
  for (const GrammarPosition& position : from) {
    if (position.state == kEnd) continue;
    const GrammarState& at = grammar_->states[position.state];
    if (at.is_string) {
      const StringStep step = string_step(position.inside, byte);
      if (step.kind == StringStep::Kind::inside) {
        const GrammarPosition next = within_string(position, step);
        if (next.length <= at.max_length) out.push_back(next);
      } else if (step.kind == StringStep::Kind::closed && position.length >= at.min_length) {
        add({position.stack, at.close}, out);
      }
    }
    for (const GrammarState::Edge& edge : at.edges) {
      if (byte >= edge.first && byte <= edge.last) add({position.stack, edge.target}, out);
    }
  }
  tidy(out);
}

void GrammarMatcher::step_token(const GrammarPositions& from, TokenId token,
                                GrammarPositions& out) {
  out.clear();
  for (const GrammarPosition& position : from) {
    if (position.state == kEnd) continue;
    const GrammarState& at = grammar_->states[position.state];
    if (at.token >= 0 && at.token == token) add({position.stack, at.token_target}, out);
  }
  tidy(out);
}

void GrammarMatcher::close_string(const GrammarPosition& position, GrammarPositions& out) {
  out.clear();
  add({position.stack, grammar_->states[position.state].close}, out);
  tidy(out);
}

GrammarMatcher::Bytes GrammarMatcher::possible_bytes(const GrammarPositions& positions) const {
  Bytes bytes{};
  for (const GrammarPosition& position : positions) {
    if (position.state == kEnd) continue;
    const GrammarState& at = grammar_->states[position.state];
    if (at.is_string) bytes.fill(~uint64_t{0});
    for (const GrammarState::Edge& edge : at.edges) {
      for (int byte = edge.first; byte <= edge.last; ++byte) {
        bytes[static_cast<size_t>(byte / 64)] |= uint64_t{1} << (byte % 64);
      }
    }
  }
  return bytes;
}

std::vector<TokenId> GrammarMatcher::added_tokens(const GrammarPositions& positions) const {
  std::vector<TokenId> tokens;
  for (const GrammarPosition& position : positions) {
    if (position.state == kEnd) continue;
    const TokenId token = grammar_->states[position.state].token;
    if (token >= 0) tokens.push_back(token);
  }
  return tokens;
}

bool GrammarMatcher::is_complete(const GrammarPositions& positions) {
  return std::any_of(positions.begin(), positions.end(),
                     [](const GrammarPosition& position) { return position.state == kEnd; });
}

}  // namespace glimpse
