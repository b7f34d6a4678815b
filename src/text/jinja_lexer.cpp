#include "text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>

#include "glimpse/error.h"
#include "text/unicode.h"

namespace glimpse::jinja {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\r\f\v";

bool is_source_space(char c) {
  return kWhiteSpace.find(c) != std::string_view::npos;
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_name_part(char c) {
  return is_name_start(c) || is_digit(c);
}

/// Jinja reads every kind of line end as \n and drops one at the end of the source.
std::string unify_newlines(std::string_view source) {
  std::string result;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      result += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      result += source[i];
    }
  }
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_data();
    add(Token::Kind::end_of_source, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::bad_model, fmt::format("chat template, line {}: {}", line_, what));
  }

  [[nodiscard]] bool starts_with(std::string_view text) const {
    return source_.compare(at_, text.size(), text) == 0;
  }

  void add(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }

  /// Moves on, counting lines.
  void advance(size_t count) {
    const size_t end = std::min(at_ + count, source_.size());
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    at_ = end;
  }

  void skip_space() {
    while (at_ < source_.size() && is_source_space(source_[at_])) advance(1);
  }

  /// Text up to the next tag, then the tag.
  void read_data() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) tag = source_.size();
      if (tag >= source_.size()) break;
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : ' ';
      if (next == '{' || next == '%' || next == '#') break;
    }
    std::string text = source_.substr(at_, tag - at_);
    if (tag < source_.size()) strip_before(tag, text);
    if (!text.empty()) add(Token::Kind::data, std::move(text));
    advance(tag - at_);
    if (at_ < source_.size()) read_tag();
  }

  /// What the tag at `tag` leaves of the text before it.
  void strip_before(size_t tag, std::string& text) const {
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    if (sign == '-') {
      text.erase(text.find_last_not_of(kWhiteSpace) + 1);
    } else if (sign != '+' && source_[tag + 1] != '{') {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string::npos ? 0 : newline + 1;
      const bool at_line_start = newline != std::string::npos || line_starting_;
      if (at_line_start && text.find_first_not_of(kWhiteSpace, line_begin) == std::string::npos) {
        text.erase(line_begin);
      }
    }
  }

  void read_tag() {
    const char kind = source_[at_ + 1];
    advance(2);
    if (kind == '#') {
      read_comment();
      return;
    }
    if (starts_with("-") || starts_with("+")) advance(1);
    if (kind == '%' && read_raw()) return;
    const bool block = kind == '%';
    add(block ? Token::Kind::begin_block : Token::Kind::begin_print, "");
    brackets_.clear();
    for (;;) {
      skip_space();
      if (at_ >= source_.size()) fail(block ? "\"{%\" is never closed" : "\"{{\" is never closed");
      if (brackets_.empty() && end_tag(block ? "%}" : "}}", block)) break;
      read_expression_token();
    }
    tokens_.push_back({block ? Token::Kind::end_block : Token::Kind::end_print, "", line_});
  }

  /// Consumes the end of a tag, with the white space that goes with it, if it stands here.
  bool end_tag(std::string_view closing, bool trim_newline) {
    const size_t begin = at_;
    if (starts_with(fmt::format("-{}", closing))) {
      advance(3);
      skip_space();
    } else if (starts_with(closing)) {
      advance(2);
      if (trim_newline && starts_with("\n")) advance(1);
    } else if (trim_newline && starts_with(fmt::format("+{}", closing))) {
      advance(3);
    } else {
      return false;
    }
    line_starting_ = at_ > begin && source_[at_ - 1] == '\n';
    return true;
  }

  void read_comment() {
    const size_t close = source_.find("#}", at_);
    if (close == std::string::npos) fail("\"{#\" is never closed");
    const bool has_sign = close > at_ && (source_[close - 1] == '-' || source_[close - 1] == '+');
    advance(close - (has_sign ? 1 : 0) - at_);
    end_tag("#}", true);
  }

  /// {% raw %}...{% endraw %}, after "{%" and its sign.
  bool read_raw() {
    const size_t begin = at_;
    const int line = line_;
    if (!read_word("raw")) {
      at_ = begin;
      line_ = line;
      return false;
    }
    for (size_t open = source_.find("{%", at_);; open = source_.find("{%", open + 2)) {
      if (open == std::string::npos) fail("\"raw\" is never closed");
      std::string text = source_.substr(at_, open - at_);
      const size_t text_begin = at_;
      const int text_line = line_;
      advance(open + 2 - at_);
      if (starts_with("-") || starts_with("+")) advance(1);
      if (!read_word("endraw")) {
        at_ = text_begin;
        line_ = text_line;
        continue;
      }
      strip_before(open, text);
      if (!text.empty()) add(Token::Kind::data, std::move(text));
      return true;
    }
  }

  /// A block that holds only `word`, through its end.
  bool read_word(std::string_view word) {
    skip_space();
    if (!starts_with(word)) return false;
    advance(word.size());
    skip_space();
    return end_tag("%}", true);
  }

  void read_expression_token() {
    const char c = source_[at_];
    if (c == '"' || c == '\'') {
      read_string(c);
    } else if (is_digit(c)) {
      read_number();
    } else if (is_name_start(c)) {
      size_t end = at_;
      while (end < source_.size() && is_name_part(source_[end])) ++end;
      add(Token::Kind::name, source_.substr(at_, end - at_));
      advance(end - at_);
    } else {
      read_symbol();
    }
  }

  void read_symbol() {
    constexpr std::array<std::string_view, 26> kSymbols = {
        "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
        ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ",", ".", ":", "|", ";"};
    const auto* symbol = std::find_if(kSymbols.begin(), kSymbols.end(),
                                      [&](std::string_view s) { return starts_with(s); });
    if (symbol == kSymbols.end()) fail(fmt::format("unexpected character '{}'", source_[at_]));
    const char c = (*symbol)[0];
    if (c == '(' || c == '[' || c == '{') brackets_ += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (brackets_.empty() || brackets_.back() != c) fail(fmt::format("unexpected '{}'", c));
      brackets_.pop_back();
    }
    add(Token::Kind::symbol, std::string(*symbol));
    advance(symbol->size());
  }

  void read_number() {
    size_t end = at_;
    const auto digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    };
    const auto digit_at = [&](size_t i) { return i < source_.size() && is_digit(source_[i]); };
    digits();
    bool real = false;
    if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      real = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const bool sign =
          end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-');
      if (digit_at(end + (sign ? 2 : 1))) {
        real = true;
        end += sign ? 2 : 1;
        digits();
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    add(real ? Token::Kind::real : Token::Kind::integer, std::move(text));
    advance(end - at_);
  }

  void read_string(char quote) {
    std::string value;
    const int line = line_;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] == '\\' && i + 1 < source_.size()) {
        i = read_escape(i + 1, value);
      } else {
        value += source_[i];
      }
    }
    if (i >= source_.size()) fail("a string is never closed");
    advance(i + 1 - at_);
    tokens_.push_back({Token::Kind::string, std::move(value), line});
  }

  /// The escape whose letter is at `i`; returns its last position.
  size_t read_escape(size_t i, std::string& value) const {
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    const char letter = source_[i];
    if (const size_t known = kLetters.find(letter); known != std::string_view::npos) {
      value += kValues[known];
      return i;
    }
    if (letter == '\n') return i;
    if (letter == 'x') return read_code(i + 1, 2, 16, value);
    if (letter == 'u') return read_code(i + 1, 4, 16, value);
    if (letter == 'U') return read_code(i + 1, 8, 16, value);
    if (letter >= '0' && letter <= '7') {
      size_t length = 1;
      while (length < 3 && source_[i + length] >= '0' && source_[i + length] <= '7') ++length;
      return read_code(i, length, 8, value);
    }
    value += {'\\', letter};
    return i;
  }

  size_t read_code(size_t i, size_t length, int base, std::string& value) const {
    uint32_t code = 0;
    const char* begin = source_.data() + std::min(i, source_.size());
    const char* end = source_.data() + std::min(i + length, source_.size());
    const auto parsed = std::from_chars(begin, end, code, base);
    if (parsed.ec != std::errc() || parsed.ptr != begin + length || code > 0x10FFFF ||
        (code >= 0xD800 && code < 0xE000)) {
      fail("a string escape names no character");
    }
    append_utf8(value, code);
    return i + length - 1;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag took the line's end with it
  std::string brackets_;       // closing brackets that are due
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  if (!is_valid_utf8(source)) {
    throw Error(ErrorCode::bad_model, "the chat template is not valid UTF-8");
  }
  return Lexer(unify_newlines(source)).run();
}

}  // namespace glimpse::jinja
