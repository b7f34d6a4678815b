#include "text/grammar.h"

#include <algorithm>

#include "base/check.h"

namespace glimpse {
namespace {

constexpr size_t kMaxStates = 200'000;

}  // namespace

StateId GrammarBuilder::new_state() {
  if (grammar_.states.size() >= kMaxStates) {
    throw Error(ErrorCode::unsupported,
                fmt::format("the schema needs more than {} grammar states", kMaxStates),
                "lower maxItems, or describe fewer properties and choices");
  }
  grammar_.states.emplace_back();
  return static_cast<StateId>(grammar_.states.size() - 1);
}

void GrammarBuilder::edge(StateId from, char first, char last, StateId to) {
  state(from).edges.push_back({static_cast<uint8_t>(first), static_cast<uint8_t>(last), to});
}

StateId GrammarBuilder::literal(StateId from, std::string_view bytes) {
  for (const char c : bytes) {
    const StateId next = new_state();
    edge(from, c, next);
    from = next;
  }
  return from;
}

StateId GrammarBuilder::one_of(StateId from, const std::vector<std::string>& literals) {
  const StateId end = new_state();
  const StateId root = new_state();
  jump(from, root);
  for (const std::string& text : literals) {
    StateId at = root;
    for (const char c : text) {
      const auto& edges = state(at).edges;
      const auto known = std::find_if(edges.begin(), edges.end(), [&](const auto& e) {
        return e.first == static_cast<uint8_t>(c);
      });
      if (known != edges.end()) {
        at = known->target;
        continue;
      }
      const StateId next = new_state();
      edge(at, c, next);
      at = next;
    }
    jump(at, end);
  }
  return end;
}

StateId GrammarBuilder::call(StateId from, StateId rule) {
  const StateId resume = new_state();
  state(from).calls.push_back({rule, resume});
  return resume;
}

StateId GrammarBuilder::added_token(StateId from, TokenId token) {
  const StateId target = new_state();
  const StateId at = new_state();
  jump(from, at);
  state(at).token = token;
  state(at).token_target = target;
  return target;
}

// ---- finishing --------------------------------------------------------------------------------

Grammar GrammarBuilder::finish(StateId start, StateId end) {
  state(end).ends_rule = true;
  grammar_.start = start;
  refuse_left_recursion();
  shorten_jumps();
  measure_depth();
  if (state(grammar_.start).needed_depth > Grammar::kMaxDepth) {
    throw Error(ErrorCode::invalid_argument, "no value satisfies the schema",
                "look for required properties that contain themselves, or choices that are empty");
  }
  drop_dead_ends();
  return std::move(grammar_);
}

// Depth-first over what needs no byte; a state met again while it is still open is a cycle.
void GrammarBuilder::refuse_left_recursion() const {
  enum class Mark : uint8_t { fresh, open, done };
  struct Visit {
    StateId state;
    size_t next = 0;
  };
  std::vector<Mark> marks(grammar_.states.size(), Mark::fresh);
  for (StateId root = 0; root < grammar_.states.size(); ++root) {
    if (marks[root] != Mark::fresh) continue;
    std::vector<Visit> path{{root}};
    marks[root] = Mark::open;
    while (!path.empty()) {
      const GrammarState& from = grammar_.states[path.back().state];
      const size_t i = path.back().next++;
      if (i >= from.jumps.size() + from.calls.size()) {
        marks[path.back().state] = Mark::done;
        path.pop_back();
        continue;
      }
      const StateId to =
          i < from.jumps.size() ? from.jumps[i] : from.calls[i - from.jumps.size()].rule;
      if (marks[to] == Mark::open) {
        throw Error(ErrorCode::unsupported,
                    "the schema refers to itself without anything in between",
                    "a $ref must lead through a property or an array before it comes back");
      }
      if (marks[to] == Mark::fresh) {
        marks[to] = Mark::open;
        path.push_back({to});
      }
    }
  }
}

// States that only jump on are skipped, so that ways to the same place have the same name.
void GrammarBuilder::shorten_jumps() {
  const auto shortened = [&](StateId id) {
    for (;;) {
      const GrammarState& at = grammar_.states[id];
      const bool only_jumps = at.jumps.size() == 1 && at.edges.empty() && at.calls.empty() &&
                              at.token < 0 && !at.is_string && !at.ends_rule;
      if (!only_jumps) return id;
      id = at.jumps.front();
    }
  };
  for (GrammarState& at : grammar_.states) {
    for (GrammarState::Edge& edge : at.edges) edge.target = shortened(edge.target);
    for (StateId& to : at.jumps) to = shortened(to);
    for (GrammarState::Call& call : at.calls) {
      call = {shortened(call.rule), shortened(call.resume)};
    }
    if (at.is_string) at.close = shortened(at.close);
    if (at.token >= 0) at.token_target = shortened(at.token_target);
  }
  grammar_.start = shortened(grammar_.start);
}

// Spreads needed_depth backwards from the states that end a rule, until nothing gets lower.
void GrammarBuilder::measure_depth() {
  std::vector<GrammarState>& states = grammar_.states;
  struct Link {
    StateId from;
    bool is_call;
    GrammarState::Call call;
  };
  std::vector<std::vector<Link>> links(states.size());  // of each state, those that lead to it
  std::vector<StateId> lowered;
  for (StateId id = 0; id < states.size(); ++id) {
    GrammarState& at = states[id];
    at.needed_depth = at.ends_rule ? 0 : kUnlimited;
    if (at.ends_rule) lowered.push_back(id);
    for (const GrammarState::Edge& edge : at.edges) links[edge.target].push_back({id, false, {}});
    for (const StateId to : at.jumps) links[to].push_back({id, false, {}});
    if (at.is_string) links[at.close].push_back({id, false, {}});
    if (at.token >= 0) links[at.token_target].push_back({id, false, {}});
    for (const GrammarState::Call& call : at.calls) {
      links[call.rule].push_back({id, true, call});
      links[call.resume].push_back({id, true, call});
    }
  }
  while (!lowered.empty()) {
    const StateId id = lowered.back();
    lowered.pop_back();
    for (const Link& link : links[id]) {
      uint32_t depth = states[id].needed_depth;
      if (link.is_call) {
        const uint32_t inside = states[link.call.rule].needed_depth;
        if (inside == kUnlimited) continue;
        depth = std::max(inside + 1, states[link.call.resume].needed_depth);
      }
      if (depth > Grammar::kMaxDepth || depth >= states[link.from].needed_depth) continue;
      states[link.from].needed_depth = depth;
      lowered.push_back(link.from);
    }
  }
}

void GrammarBuilder::drop_dead_ends() {
  const auto is_dead = [&](StateId id) { return state(id).needed_depth == kUnlimited; };
  for (GrammarState& at : grammar_.states) {
    std::erase_if(at.edges, [&](const auto& edge) { return is_dead(edge.target); });
    std::erase_if(at.jumps, is_dead);
    std::erase_if(at.calls,
                  [&](const auto& call) { return is_dead(call.rule) || is_dead(call.resume); });
    if (at.is_string && is_dead(at.close)) at.is_string = false;
    if (at.token >= 0 && is_dead(at.token_target)) at.token = -1;
  }
}

}  // namespace glimpse
