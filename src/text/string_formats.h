// The values of JSON Schema's "format" that can be written byte by byte and are always right.
#pragma once

#include <optional>
#include <string_view>

#include "text/grammar.h"

namespace glimpse {

/// A string of `format`, without quotes: date, time and date-time as RFC 3339 has them, uuid, ipv4.
/// nullopt for any other.
[[nodiscard]] std::optional<StateId> add_format(GrammarBuilder& builder, StateId from,
                                                std::string_view format);

}  // namespace glimpse
