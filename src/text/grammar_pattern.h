// JSON strings that match a regular expression, as part of a grammar.
#pragma once

#include "text/grammar.h"
#include "text/regex_automaton.h"

namespace glimpse {

/// A string, quotes included, of least..most characters that `automaton` accepts. Its characters
/// are written in one way each: escaped only where they must be, and never as \u. Throws
/// Error(unsupported) when that needs too many states.
[[nodiscard]] StateId add_pattern(GrammarBuilder& builder, StateId from,
                                  const RegexAutomaton& automaton, uint32_t least, uint32_t most);

}  // namespace glimpse
