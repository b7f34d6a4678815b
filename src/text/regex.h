// Regular expressions as JSON Schema's "pattern" has them: the part of ECMA-262 (with its flag u)
// whose languages are regular, read into a tree.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

namespace glimpse {

struct CodePointRange {
  char32_t first;
  char32_t last;
  friend auto operator<=>(const CodePointRange&, const CodePointRange&) = default;
};
/// Sorted, neither touching nor overlapping.
using CodePointSet = std::vector<CodePointRange>;

inline constexpr char32_t kLastCodePoint = 0x10FFFF;

[[nodiscard]] CodePointSet united(CodePointSet ranges);
[[nodiscard]] CodePointSet complement(const CodePointSet& set);

struct RegexNode {
  enum class Kind : uint8_t { sequence, choice, set, repeat, text_begin, text_end };
  static constexpr uint32_t kUnbounded = std::numeric_limits<uint32_t>::max();
  static constexpr uint32_t kMaxRepeats = 1000;

  Kind kind = Kind::sequence;       ///< of nothing: the empty text
  std::vector<RegexNode> children;  ///< one of a repeat
  CodePointSet set;
  uint32_t least = 0;  ///< times that a repeat's child stands
  uint32_t most = 0;   ///< at most kMaxRepeats, or kUnbounded
};

/// `pattern` must be valid UTF-8. Lazy quantifiers are read as greedy ones and every group as
/// (?:...): the language is the same. Throws Error(invalid_argument) for a malformed pattern,
/// Error(unsupported) naming what has no place here: look-around, back references, \b, \p.
[[nodiscard]] RegexNode parse_regex(std::string_view pattern);

}  // namespace glimpse
