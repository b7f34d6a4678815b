#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include <utf8proc.h>

#include "base/check.h"

namespace glimpse {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct CodePointRange {
  char32_t first;
  char32_t last;
};

// Code points that neither compose with a neighbour nor decompose, in blocks that text is made of.
// Everything outside is simply normalised; a test compares the two over all of Unicode.
constexpr std::array<CodePointRange, 10> kInertRanges = {{
    {0x0000, 0x02FF},    // Latin without combining marks
    {0x0400, 0x0482},    // Cyrillic letters
    {0x2010, 0x2027},    // dashes and quotation marks
    {0x3001, 0x3029},    // CJK punctuation
    {0x3041, 0x3096},    // Hiragana
    {0x30A1, 0x30FA},    // Katakana
    {0x4E00, 0x9FFF},    // CJK ideographs
    {0xAC00, 0xD7A3},    // Hangul syllables
    {0xFF01, 0xFF60},    // full-width forms
    {0x1F300, 0x1FAFF},  // pictographs
}};

bool is_inert(char32_t code_point) {
  return std::any_of(kInertRanges.begin(), kInertRanges.end(), [&](const CodePointRange& range) {
    return code_point >= range.first && code_point <= range.last;
  });
}

bool is_ascii(std::string_view text) {
  size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + at, 8);
    if ((word & 0x8080808080808080U) != 0) return false;
  }
  for (; at < text.size(); ++at) {
    if (static_cast<unsigned char>(text[at]) >= 0x80) return false;
  }
  return true;
}

/// Appends the canonical decomposition of one code point.
void decompose(char32_t code_point, std::vector<utf8proc_int32_t>& out) {
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  constexpr utf8proc_ssize_t kRoom = 32;
  const size_t old_size = out.size();
  out.resize(old_size + kRoom);
  int boundary_class = 0;
  const utf8proc_ssize_t count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point), out.data() + old_size,
                              kRoom, kOptions, &boundary_class);
  check(count >= 0 && count <= kRoom, "a canonical decomposition fits its buffer");
  out.resize(old_size + static_cast<size_t>(count));
}

/// Puts runs of combining marks into canonical order. A stable sort of each run: a text of nothing
/// but marks costs n log n, where the usual exchange of neighbours would take n squared.
void order_marks(std::vector<utf8proc_int32_t>& code_points) {
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  auto begin = code_points.begin();
  while (begin != code_points.end()) {
    begin = std::find_if(begin, code_points.end(), [&](auto c) { return combining_class(c) != 0; });
    const auto end =
        std::find_if(begin, code_points.end(), [&](auto c) { return combining_class(c) == 0; });
    std::stable_sort(begin, end,
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
}

}  // namespace

Utf8Step utf8_step(std::string_view bytes) {
  using Kind = Utf8Step::Kind;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Kind::character, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Kind::invalid, 1, 0};
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte has a narrower range after four leads: no overlong forms, surrogates or
  // values beyond U+10FFFF.
  const unsigned lowest = lead == 0xE0 ? 0xA0U : lead == 0xF0 ? 0x90U : 0x80U;
  const unsigned highest = lead == 0xED ? 0x9FU : lead == 0xF4 ? 0x8FU : 0xBFU;
  char32_t code_point = lead & (0x7FU >> length);
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == bytes.size()) return {Kind::incomplete, i, 0};
    const unsigned next = byte(static_cast<size_t>(i));
    const bool fits = i == 1 ? next >= lowest && next <= highest : (next & 0xC0U) == 0x80U;
    if (!fits) return {Kind::invalid, i, 0};
    code_point = (code_point << 6) | (next & 0x3FU);
  }
  return {Kind::character, length, code_point};
}

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6)), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12)), put(0x80 | ((c >> 6) & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18)), put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F)), put(0x80 | (c & 0x3F));
  }
}

bool is_valid_utf8(std::string_view bytes) {
  if (is_ascii(bytes)) return true;
  while (!bytes.empty()) {
    const Utf8Step step = utf8_step(bytes);
    if (step.kind != Utf8Step::Kind::character) return false;
    bytes.remove_prefix(static_cast<size_t>(step.length));
  }
  return true;
}

size_t append_replacing_invalid(std::string_view bytes, Utf8Tail tail, std::string& out) {
  size_t at = 0;
  while (at < bytes.size()) {
    const Utf8Step step = utf8_step(bytes.substr(at));
    if (step.kind == Utf8Step::Kind::character) {
      out.append(bytes, at, static_cast<size_t>(step.length));
    } else if (step.kind == Utf8Step::Kind::incomplete && tail == Utf8Tail::keep_incomplete) {
      break;
    } else {
      out.append(kReplacement);
    }
    at += static_cast<size_t>(step.length);
  }
  return at;
}

bool is_surely_nfc(std::string_view text) {
  if (is_ascii(text)) return true;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (!is_inert(step.code_point)) return false;
    text.remove_prefix(static_cast<size_t>(step.length));
  }
  return true;
}

std::string normalize_nfc(std::string_view text) {
  if (is_surely_nfc(text)) return std::string(text);
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    check(step.kind == Utf8Step::Kind::character, "only valid UTF-8 is normalised");
    decompose(step.code_point, code_points);
    text.remove_prefix(static_cast<size_t>(step.length));
  }
  order_marks(code_points);
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), kOptions);
  check(count >= 0, "composition succeeds");
  std::string result;
  result.reserve(code_points.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    append_utf8(result, static_cast<char32_t>(code_points[static_cast<size_t>(i)]));
  }
  return result;
}

}  // namespace glimpse
