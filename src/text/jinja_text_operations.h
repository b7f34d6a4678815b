// What string methods and filters share.
#pragma once

#include <cstdint>

#include "text/jinja_evaluation.h"

namespace glimpse::jinja {

enum class StripSides : uint8_t { left, right, both };
/// Without the characters of `characters` (white space when null) on the given sides.
[[nodiscard]] SourcedText strip(const SourcedText& text, const SourcedText* characters,
                                StripSides sides);

enum class LetterCase : uint8_t { upper, lower, title, capitalized };
/// One code point for one: what Unicode writes as several ("SS" for a sharp s) stays as it is.
[[nodiscard]] SourcedText change_case(const SourcedText& text, LetterCase letter_case);

/// The first `limit` occurrences of `from` become `to`; all when negative.
[[nodiscard]] SourcedText replace(Evaluation& evaluation, const SourcedText& text,
                                  const SourcedText& from, const SourcedText& to, int64_t limit);

/// [[key, value], ...]
[[nodiscard]] Value dict_items(Evaluation& evaluation, const Dict& dict);

}  // namespace glimpse::jinja
