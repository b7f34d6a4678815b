#include "text/regex.h"

#include <algorithm>
#include <optional>
#include <string>

#include "base/check.h"
#include "text/unicode.h"

namespace glimpse {
namespace {

constexpr size_t kMaxLength = 2000;
constexpr int kMaxGroupDepth = 64;  // of groups within groups

const CodePointSet kDigits = {{'0', '9'}};
const CodePointSet kWordCharacters = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePointSet kSpaces = {
    {'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
    {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const CodePointSet kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

bool is_digit(char32_t c) {
  return c >= '0' && c <= '9';
}

bool is_letter(char32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

std::optional<uint32_t> hex_digit(char32_t c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return std::nullopt;
}

std::vector<char32_t> code_points_of(std::string_view text) {
  std::vector<char32_t> points;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    check(step.kind == Utf8Step::Kind::character, "a pattern is no UTF-8");
    points.push_back(step.code_point);
    text.remove_prefix(static_cast<size_t>(step.length));
  }
  return points;
}

class Parser {
 public:
  explicit Parser(std::string_view pattern) : pattern_(pattern), text_(code_points_of(pattern)) {
    if (text_.size() > kMaxLength) {
      unsupported(fmt::format("a pattern of more than {} characters", kMaxLength));
    }
  }

  RegexNode parse() {
    RegexNode whole = choice();
    if (!at_end()) malformed("there is a ) without its (");
    return whole;
  }

 private:
  // ---- messages and reading ---------------------------------------------------------------------
  [[nodiscard]] std::string place() const {
    constexpr size_t kMost = 60;
    const std::string_view shown = pattern_.substr(0, pattern_.size() > kMost ? kMost : 0);
    return fmt::format("the pattern {}{}, character {}", shown.empty() ? pattern_ : valid(shown),
                       shown.empty() ? "" : "...", at_);
  }
  // Without the beginning of a character that was cut.
  static std::string_view valid(std::string_view text) {
    while (!is_valid_utf8(text)) text.remove_suffix(1);
    return text;
  }
  [[noreturn]] void malformed(const std::string& what) const {
    throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}", place(), what),
                "patterns are regular expressions of ECMA-262");
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorCode::unsupported, fmt::format("{}: {} is not supported", place(), what),
                "docs/api.md lists what is supported");
  }

  [[nodiscard]] bool at_end() const { return at_ == text_.size(); }
  [[nodiscard]] bool sees(std::string_view expected) const {
    return text_.size() - at_ >= expected.size() &&
           std::equal(expected.begin(), expected.end(), text_.begin() + static_cast<long>(at_),
                      [](char a, char32_t b) { return static_cast<char32_t>(a) == b; });
  }
  bool skip(std::string_view expected) {
    if (!sees(expected)) return false;
    at_ += expected.size();
    return true;
  }
  char32_t take() {
    if (at_end()) malformed("it ends too early");
    return text_[at_++];
  }

  // ---- structure --------------------------------------------------------------------------------
  RegexNode choice() {
    if (++depth_ > kMaxGroupDepth) {
      unsupported(fmt::format("nesting deeper than {}", kMaxGroupDepth));
    }
    RegexNode first = sequence();
    if (sees("|")) {
      RegexNode node{.kind = RegexNode::Kind::choice};
      node.children.push_back(std::move(first));
      while (skip("|")) node.children.push_back(sequence());
      first = std::move(node);
    }
    --depth_;
    return first;
  }

  RegexNode sequence() {
    RegexNode node;
    while (!at_end() && !sees("|") && !sees(")")) {
      RegexNode next = term();
      if (next.kind != RegexNode::Kind::text_begin && next.kind != RegexNode::Kind::text_end) {
        next = quantified(std::move(next));
      }
      node.children.push_back(std::move(next));
    }
    return node;
  }

  RegexNode term() {
    if (skip("^")) return {.kind = RegexNode::Kind::text_begin};
    if (skip("$")) return {.kind = RegexNode::Kind::text_end};
    if (skip("(")) return group();
    if (skip(".")) return set_of(complement(kLineEnds));
    if (skip("[")) return set_of(character_class());
    if (sees("*") || sees("+") || sees("?") || counts()) {
      malformed("there is nothing to repeat before the quantifier");
    }
    if (skip("\\")) return set_of(escape());
    const char32_t c = take();
    return set_of({{c, c}});
  }

  static RegexNode set_of(CodePointSet set) {
    return {.kind = RegexNode::Kind::set, .children = {}, .set = std::move(set)};
  }

  RegexNode group() {
    if (skip("?")) {
      if (sees("=") || sees("!") || sees("<=") || sees("<!")) unsupported("look-around");
      if (skip("<")) {
        while (take() != '>') {
        }
      } else if (!skip(":")) {
        unsupported("a group that begins with (?");
      }
    }
    RegexNode inside = choice();
    if (!skip(")")) malformed("a ( lacks its )");
    return inside;
  }

  struct Counts {
    uint32_t least;
    uint32_t most;
    size_t end;  // where the pattern goes on
  };
  // {2}, {2,} or {2,3}; any other { stands for itself.
  [[nodiscard]] std::optional<Counts> counts() const {
    if (!sees("{")) return std::nullopt;
    size_t at = at_ + 1;
    const auto number = [&]() -> std::optional<uint32_t> {
      if (at == text_.size() || !is_digit(text_[at])) return std::nullopt;
      uint32_t value = 0;
      for (; at < text_.size() && is_digit(text_[at]); ++at) {
        value = std::min<uint32_t>(value * 10 + (text_[at] - '0'), RegexNode::kMaxRepeats + 1);
      }
      return value;
    };
    const std::optional<uint32_t> least = number();
    if (!least) return std::nullopt;
    uint32_t most = *least;
    if (at < text_.size() && text_[at] == ',') {
      ++at;
      most = number().value_or(RegexNode::kUnbounded);
    }
    if (at == text_.size() || text_[at] != '}') return std::nullopt;
    return Counts{*least, most, at + 1};
  }

  RegexNode quantified(RegexNode child) {
    Counts times{0, RegexNode::kUnbounded, 0};
    if (skip("*")) {
    } else if (skip("+")) {
      times.least = 1;
    } else if (skip("?")) {
      times.most = 1;
    } else if (const auto counted = counts()) {
      times = *counted;
      at_ = times.end;
    } else {
      return child;
    }
    skip("?");  // lazy: the same texts
    const uint32_t highest = times.most == RegexNode::kUnbounded ? times.least : times.most;
    if (highest > RegexNode::kMaxRepeats) {
      unsupported(fmt::format("repeating more than {} times", RegexNode::kMaxRepeats));
    }
    if (times.least > times.most) malformed("the least number of repeats exceeds the most");
    RegexNode node{.kind = RegexNode::Kind::repeat};
    node.children.push_back(std::move(child));
    node.least = times.least;
    node.most = times.most;
    return node;
  }

  // ---- characters -------------------------------------------------------------------------------
  CodePointSet character_class() {
    const bool is_negated = skip("^");
    CodePointSet ranges;
    while (!skip("]")) {
      const CodePointSet first = class_member();
      const bool is_range =
          sees("-") && !sees("-]") && first.size() == 1 && first[0].first == first[0].last;
      if (is_range) {
        skip("-");
        const CodePointSet last = class_member();
        if (last.size() != 1 || last[0].first != last[0].last || last[0].first < first[0].first) {
          malformed("a range of characters ends before it begins");
        }
        ranges.push_back({first[0].first, last[0].first});
      } else {
        ranges.insert(ranges.end(), first.begin(), first.end());
      }
    }
    CodePointSet set = united(std::move(ranges));
    return is_negated ? complement(set) : set;
  }

  CodePointSet class_member() {
    const char32_t c = take();
    if (c != '\\') return {{c, c}};
    if (skip("b")) return {{'\b', '\b'}};
    return escape();
  }

  // What stands after a backslash.
  CodePointSet escape() {
    const char32_t c = take();
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWordCharacters;
      case 'W':
        return complement(kWordCharacters);
      case 's':
        return kSpaces;
      case 'S':
        return complement(kSpaces);
      case 'b':
      case 'B':
        unsupported("a word boundary");
      case 'p':
      case 'P':
        unsupported("a property of characters (\\p)");
      case 'k':
        unsupported("a back reference");
      default:
        break;
    }
    if (c >= '1' && c <= '9') unsupported("a back reference");
    const char32_t one = single_character(c);
    return {{one, one}};
  }

  char32_t single_character(char32_t c) {
    constexpr std::string_view kNames = "tnvfr";  // tab, line feed, ... carriage return: 9 to 13
    if (const size_t i = c < 0x80 ? kNames.find(static_cast<char>(c)) : std::string_view::npos;
        i != std::string_view::npos) {
      return static_cast<char32_t>('\t' + i);
    }
    if (c == '0' && (at_end() || !is_digit(text_[at_]))) return 0;
    if (c == 'x') return hex(2);
    if (c == 'u') return unicode_escape();
    if (c == 'c' && !at_end() && is_letter(text_[at_])) return take() % 32;
    if (c >= 0x80 || is_letter(c) || is_digit(c)) {
      std::string shown;
      append_utf8(shown, c);
      malformed(fmt::format("\\{} is no escape", shown));
    }
    return c;
  }

  char32_t hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      const std::optional<uint32_t> digit = hex_digit(take());
      if (!digit) malformed("a hexadecimal digit is missing");
      value = value * 16 + *digit;
    }
    return value;
  }

  char32_t unicode_escape() {
    char32_t value = 0;
    if (skip("{")) {
      do {
        value = value * 16 + hex(1);
        if (value > kLastCodePoint) malformed("no character has such a number");
      } while (!skip("}"));
    } else {
      value = hex(4);
      const bool is_pair = value >= 0xD800 && value <= 0xDBFF && skip("\\u");
      if (is_pair) {
        const char32_t low = hex(4);
        if (low < 0xDC00 || low > 0xDFFF) malformed("half of a pair of surrogates is missing");
        value = 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00);
      }
    }
    if (value >= 0xD800 && value <= 0xDFFF) malformed("a surrogate alone is no character");
    return value;
  }

  std::string_view pattern_;
  std::vector<char32_t> text_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

CodePointSet united(CodePointSet ranges) {
  std::sort(ranges.begin(), ranges.end());
  CodePointSet result;
  for (const CodePointRange& range : ranges) {
    if (!result.empty() && range.first <= result.back().last + 1) {
      result.back().last = std::max(result.back().last, range.last);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

CodePointSet complement(const CodePointSet& set) {
  CodePointSet result;
  char32_t next = 0;
  for (const CodePointRange& range : set) {
    if (range.first > next) result.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) result.push_back({next, kLastCodePoint});
  return result;
}

RegexNode parse_regex(std::string_view pattern) {
  return Parser(pattern).parse();
}

}  // namespace glimpse
