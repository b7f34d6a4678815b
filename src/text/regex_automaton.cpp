// Thompson's construction, then sets of its states over classes of characters that the expression
// does not tell apart. Work is counted: an expression of a few bytes can ask for any amount.
#include "text/regex_automaton.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace glimpse {
namespace {

constexpr size_t kMaxSteps = 20'000;  // of the expression, its repeats written out
constexpr size_t kMaxAutomatonStates = 4'000;
constexpr size_t kMaxWork = 4'000'000;  // some tens of milliseconds

[[noreturn]] void refuse_as_too_large(const char* of_what, size_t limit) {
  throw Error(ErrorCode::unsupported,
              fmt::format("the pattern needs more than {} {}", limit, of_what),
              "repeat less often, or begin the pattern with ^ and keep its choices apart");
}

// ---- what may happen next ---------------------------------------------------------------------

struct Step {
  enum class Kind : uint8_t { jump, set, text_begin, text_end, match };
  Kind kind = Kind::jump;
  uint32_t set = 0;
  std::vector<uint32_t> next;  // one, but for a jump
};

/// An expression as steps, each leading to the next.
class Steps {
 public:
  explicit Steps(const RegexNode& regex) {
    const uint32_t match = add({.kind = Step::Kind::match});
    const uint32_t found = build(regex, match);
    start_ = add({.next = {found}});
    const uint32_t other =
        add({.kind = Step::Kind::set, .set = set_number({{0, kLastCodePoint}}), .next = {start_}});
    steps_[start_].next.push_back(other);
  }

  [[nodiscard]] uint32_t start() const { return start_; }
  [[nodiscard]] const Step& operator[](uint32_t i) const { return steps_[i]; }
  [[nodiscard]] size_t size() const { return steps_.size(); }
  /// The sets that steps refer to.
  [[nodiscard]] const std::map<CodePointSet, uint32_t>& sets() const { return sets_; }

 private:
  uint32_t add(Step step) {
    if (steps_.size() >= kMaxSteps) refuse_as_too_large("steps", kMaxSteps);
    steps_.push_back(std::move(step));
    return static_cast<uint32_t>(steps_.size() - 1);
  }
  uint32_t set_number(const CodePointSet& set) {
    return sets_.emplace(set, static_cast<uint32_t>(sets_.size())).first->second;
  }

  // Where `node` begins that goes on to `to`.
  uint32_t build(const RegexNode& node, uint32_t to) {
    switch (node.kind) {
      case RegexNode::Kind::sequence: {
        if (node.children.empty()) return add({.next = {to}});
        for (auto child = node.children.rbegin(); child != node.children.rend(); ++child) {
          to = build(*child, to);
        }
        return to;
      }
      case RegexNode::Kind::choice: {
        Step choice;
        for (const RegexNode& child : node.children) choice.next.push_back(build(child, to));
        return add(std::move(choice));
      }
      case RegexNode::Kind::set:
        return add({.kind = Step::Kind::set, .set = set_number(node.set), .next = {to}});
      case RegexNode::Kind::repeat:
        return build_repeat(node, to);
      case RegexNode::Kind::text_begin:
        return add({.kind = Step::Kind::text_begin, .next = {to}});
      default:
        return add({.kind = Step::Kind::text_end, .next = {to}});
    }
  }

  uint32_t build_repeat(const RegexNode& node, uint32_t to) {
    const RegexNode& child = node.children.front();
    uint32_t at = to;
    if (node.most == RegexNode::kUnbounded) {
      at = add({.next = {to}});
      const uint32_t once_more = build(child, at);
      steps_[at].next.push_back(once_more);
    } else {
      for (uint32_t i = node.least; i < node.most; ++i) {
        const uint32_t once_more = build(child, at);
        at = add({.next = {once_more, to}});
      }
    }
    for (uint32_t i = 0; i < node.least; ++i) at = build(child, at);
    return at;
  }

  std::vector<Step> steps_;
  std::map<CodePointSet, uint32_t> sets_;
  uint32_t start_ = 0;
};

// ---- classes of characters --------------------------------------------------------------------

struct Classes {
  struct Interval {
    CodePointRange range;
    uint32_t class_number;
  };
  std::vector<Interval> intervals;            // all characters, in their order
  std::vector<std::vector<uint32_t>> of_set;  // by set: its classes
  uint32_t count = 0;

  explicit Classes(const std::map<CodePointSet, uint32_t>& sets) : of_set(sets.size()) {
    std::vector<char32_t> begins{0};
    for (const auto& [set, unused] : sets) {
      for (const CodePointRange& range : set) {
        begins.push_back(range.first);
        begins.push_back(range.last + 1);
      }
    }
    std::sort(begins.begin(), begins.end());
    begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
    if (begins.back() > kLastCodePoint) begins.pop_back();
    if (begins.size() * sets.size() > kMaxWork) refuse_as_too_large("steps", kMaxSteps);
    std::vector<std::vector<uint32_t>> members(begins.size());  // by interval: sets that hold it
    for (const auto& [set, number] : sets) {
      for (const CodePointRange& range : set) {
        auto at = std::lower_bound(begins.begin(), begins.end(), range.first);
        for (; at != begins.end() && *at <= range.last; ++at) {
          members[static_cast<size_t>(at - begins.begin())].push_back(number);
        }
      }
    }
    std::map<std::vector<uint32_t>, uint32_t> known;
    for (size_t i = 0; i < begins.size(); ++i) {
      const char32_t last = i + 1 < begins.size() ? begins[i + 1] - 1 : kLastCodePoint;
      const auto [entry, is_new] = known.emplace(members[i], count);
      if (is_new) {
        for (const uint32_t set : members[i]) of_set[set].push_back(count);
        ++count;
      }
      intervals.push_back({{begins[i], last}, entry->second});
    }
  }
};

// ---- sets of steps ------------------------------------------------------------------------------

class Subsets {
 public:
  explicit Subsets(const RegexNode& regex)
      : steps_(regex), classes_(steps_.sets()), marks_(steps_.size(), 0) {}

  RegexAutomaton build() {
    static_cast<void>(state_of({steps_.start()}, Place::begin));
    for (uint32_t id = 0; id < waiting_.size(); ++id) add_edges(id);
    return without_dead_ends();
  }

 private:
  enum class Place { begin, later };
  // Steps that wait for a character, sorted; what the state is, is part of what tells it apart.
  struct Key {
    std::vector<uint32_t> waiting;
    bool accepts;
    bool is_settled;
    friend auto operator<=>(const Key&, const Key&) = default;
  };

  void charge(size_t work) {
    work_ += work;
    if (work_ > kMaxWork) refuse_as_too_large("units of work", kMaxWork);
  }

  // Follows what needs no character from the steps in open_; text_end only where `at_end` is.
  void follow(Place place, bool at_end, Key& key, std::vector<uint32_t>& ends) {
    while (!open_.empty()) {
      const uint32_t id = open_.back();
      open_.pop_back();
      if (marks_[id] == epoch_) continue;
      marks_[id] = epoch_;
      charge(1);
      const Step& step = steps_[id];
      if (step.kind == Step::Kind::match) {
        key.accepts = true;
        key.is_settled |= !at_end;
      } else if (step.kind == Step::Kind::set) {
        if (!at_end) key.waiting.push_back(id);
      } else if (step.kind == Step::Kind::text_end && !at_end) {
        ends.push_back(step.next.front());
      } else if (step.kind != Step::Kind::text_begin || place == Place::begin) {
        open_.insert(open_.end(), step.next.begin(), step.next.end());
      }
    }
  }

  uint32_t state_of(std::vector<uint32_t> steps, Place place) {
    Key key{{}, false, false};
    std::vector<uint32_t> ends;
    ++epoch_;
    open_ = std::move(steps);
    follow(place, false, key, ends);
    if (!ends.empty() && !key.accepts) {
      ++epoch_;  // what was passed may lie behind an end too
      open_ = ends;
      follow(place, true, key, ends);
    }
    if (key.is_settled) key.waiting.clear();
    std::sort(key.waiting.begin(), key.waiting.end());
    const auto [entry, is_new] = known_.emplace(key, static_cast<uint32_t>(waiting_.size()));
    if (is_new) {
      if (waiting_.size() >= kMaxAutomatonStates) {
        refuse_as_too_large("states", kMaxAutomatonStates);
      }
      waiting_.push_back(key.waiting);
      automaton_.states.push_back({key.accepts, key.is_settled, {}});
    }
    return entry->second;
  }

  void add_edges(uint32_t id) {
    if (automaton_.states[id].is_settled) {
      automaton_.states[id].edges = {{{0, kLastCodePoint}, id}};
      return;
    }
    std::vector<std::vector<uint32_t>> nexts(classes_.count);
    for (const uint32_t waiting : waiting_[id]) {
      const Step& step = steps_[waiting];
      const std::vector<uint32_t>& of_set = classes_.of_set[step.set];
      charge(of_set.size());
      for (const uint32_t number : of_set) nexts[number].push_back(step.next.front());
    }
    std::vector<uint32_t> targets;
    for (std::vector<uint32_t>& next : nexts) {
      targets.push_back(state_of(std::move(next), Place::later));
    }
    std::vector<RegexAutomaton::Edge> edges;
    charge(classes_.intervals.size());
    for (const Classes::Interval& interval : classes_.intervals) {
      const uint32_t target = targets[interval.class_number];
      if (!edges.empty() && edges.back().target == target) {
        edges.back().range.last = interval.range.last;
      } else {
        edges.push_back({interval.range, target});
      }
    }
    automaton_.states[id].edges = std::move(edges);
  }

  RegexAutomaton without_dead_ends() {
    std::vector<RegexAutomaton::State>& states = automaton_.states;
    std::vector<std::vector<uint32_t>> sources(states.size());
    std::vector<bool> is_alive(states.size());
    std::vector<uint32_t> open;
    for (uint32_t id = 0; id < states.size(); ++id) {
      for (const RegexAutomaton::Edge& edge : states[id].edges) sources[edge.target].push_back(id);
      is_alive[id] = states[id].accepts;
      if (states[id].accepts) open.push_back(id);
    }
    while (!open.empty()) {
      const uint32_t id = open.back();
      open.pop_back();
      for (const uint32_t source : sources[id]) {
        if (!is_alive[source]) open.push_back(source);
        is_alive[source] = true;
      }
    }
    for (RegexAutomaton::State& state : states) {
      std::erase_if(state.edges, [&](const auto& edge) { return !is_alive[edge.target]; });
    }
    return std::move(automaton_);
  }

  Steps steps_;
  Classes classes_;
  RegexAutomaton automaton_;
  std::map<Key, uint32_t> known_;
  std::vector<std::vector<uint32_t>> waiting_;  // by state
  std::vector<uint32_t> marks_;                 // by step: the epoch that met it last
  std::vector<uint32_t> open_;
  uint32_t epoch_ = 0;
  size_t work_ = 0;
};

}  // namespace

RegexAutomaton compile_regex(const RegexNode& regex) {
  return Subsets(regex).build();
}

}  // namespace glimpse
