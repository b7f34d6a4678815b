// A regular expression as a deterministic automaton over characters. It finds its expression
// anywhere in a text, as JSON Schema's "pattern" does.
#pragma once

#include <cstdint>
#include <vector>

#include "text/regex.h"

namespace glimpse {

struct RegexAutomaton {
  struct Edge {
    CodePointRange range;
    uint32_t target;
  };
  struct State {
    bool accepts = false;     ///< a text may end here
    bool is_settled = false;  ///< whatever follows, the text matches
    std::vector<Edge> edges;  ///< sorted; other characters lead to no match
  };
  std::vector<State> states;  ///< the first is where a text begins
};

/// From every state a match can be reached, but for the first of an expression that nothing
/// matches. Throws Error(unsupported) for an expression that needs too many states.
[[nodiscard]] RegexAutomaton compile_regex(const RegexNode& regex);

}  // namespace glimpse
