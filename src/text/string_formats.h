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

/// Those of the format email: dotted words without quotes, and a host of two to four labels, within
/// the lengths that RFC 5321 allows.
inline constexpr std::string_view kEmailPattern =
    "^[\\w+-]{1,20}(\\.[\\w+-]{1,20}){0,2}@([A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20})?\\.){1,3}[A-Za-z]"
    "{2,10}$";

}  // namespace glimpse
