#include "text/unicode.h"

#include <algorithm>
#include <cstdlib>
#include <random>
#include <vector>

#include <gtest/gtest.h>
#include <utf8proc.h>

namespace glimpse {
namespace {

std::string utf8proc_nfc(const std::string& text) {
  utf8proc_uint8_t* result = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::string copy(reinterpret_cast<const char*>(result),
                         static_cast<size_t>(std::max<utf8proc_ssize_t>(size, 0)));
  std::free(result);
  return copy;
}

std::string replaced(std::string_view bytes) {
  std::string text;
  append_replacing_invalid(bytes, Utf8Tail::replace_incomplete, text);
  return text;
}

TEST(Unicode, EveryCodePointNormalisesAsUtf8procDoes) {
  int changed = 0;
  for (char32_t c = 1; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, c);
    ASSERT_EQ(normalize_nfc(text), utf8proc_nfc(text)) << static_cast<uint32_t>(c);
    changed += normalize_nfc(text) != text ? 1 : 0;
  }
  EXPECT_GT(changed, 1000);
}

TEST(Unicode, RandomTextWithMarksNormalisesAsUtf8procDoes) {
  const std::vector<char32_t> alphabet = {'a',    'e',    ' ',    0xE9,    0x300,  0x301,  0x316,
                                          0x323,  0x345,  0x1100, 0x1161,  0x11A8, 0xAC00, 0xAC01,
                                          0x3099, 0x304B, 0x0F73, 0x1D15E, 0x2126, 0x0958, 0x1F71};
  std::mt19937 random(17);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (unsigned i = random() % 20; i > 0; --i)
      append_utf8(text, alphabet[random() % alphabet.size()]);
    EXPECT_EQ(normalize_nfc(text), utf8proc_nfc(text));
  }
}

TEST(Unicode, MalformedBytesAreReplacedByMaximalSubparts) {
  EXPECT_EQ(replaced("a\xFFz"), "a\uFFFDz");
  EXPECT_EQ(replaced("\xE2\x82"), "\uFFFD");  // a truncated character is one
  EXPECT_EQ(replaced("\xE2\x82z"), "\uFFFDz");
  EXPECT_EQ(replaced("\xC0\x80"), "\uFFFD\uFFFD");            // overlong
  EXPECT_EQ(replaced("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(replaced("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(replaced("\xF0\x9F\x98\x81"), "\xF0\x9F\x98\x81");
}

TEST(Unicode, AnIncompleteTailIsKeptForLater) {
  std::string text;
  EXPECT_EQ(append_replacing_invalid("ab\xF0\x9F\x98", Utf8Tail::keep_incomplete, text), 2U);
  EXPECT_EQ(text, "ab");
}

}  // namespace
}  // namespace glimpse
