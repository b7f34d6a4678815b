// UTF-8 and Unicode normalisation: the little that tokenisers and templates need. Every function
// takes any bytes; nothing here throws on malformed input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace glimpse {

/// What stands at the start of some bytes.
struct Utf8Step {
  enum class Kind : uint8_t { character, invalid, incomplete };
  Kind kind = Kind::character;
  int length = 1;           ///< bytes it spans: a whole character or a maximal malformed subpart
  char32_t code_point = 0;  ///< meaningful for a character only
};

/// Looks at the first character of `bytes`, which must not be empty. "incomplete" means that the
/// bytes end inside a character that is well-formed so far.
[[nodiscard]] Utf8Step utf8_step(std::string_view bytes);

/// Appends the UTF-8 form of `code_point`.
void append_utf8(std::string& out, char32_t code_point);

[[nodiscard]] bool is_valid_utf8(std::string_view bytes);

/// What to do with bytes at the end that may still become a character.
enum class Utf8Tail : uint8_t { keep_incomplete, replace_incomplete };
/// Appends `bytes` with every maximal malformed subpart as U+FFFD, as Python's errors="replace"
/// does. Returns how many bytes were consumed: all but an incomplete tail that is to be kept.
size_t append_replacing_invalid(std::string_view bytes, Utf8Tail tail, std::string& out);

/// Unicode normalisation form C of valid UTF-8. Text that is visibly normal already (ASCII,
/// Latin-1, CJK, Hangul syllables, ...) is returned as it is. Linear but for a sort of combining
/// marks.
[[nodiscard]] std::string normalize_nfc(std::string_view text);
/// False only where `text` may not be in form C: then normalize_nfc has to be asked.
[[nodiscard]] bool is_surely_nfc(std::string_view text);

}  // namespace glimpse
