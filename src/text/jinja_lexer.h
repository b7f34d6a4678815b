// Template source as tokens, with the white-space rules that transformers sets: the first newline
// after a block is dropped (trim_blocks) and so are blanks before a block on its line
// (lstrip_blocks); "-" strips either side and "+" leaves it alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace glimpse::jinja {

struct Token {
  enum class Kind : uint8_t {
    data,         ///< text outside all tags
    begin_print,  ///< {{
    end_print,    ///< }}
    begin_block,  ///< {%
    end_block,    ///< %}
    name,
    string,  ///< text is the value, escapes resolved
    integer,
    real,
    symbol,  ///< an operator or bracket, as written
    end_of_source,
  };
  Kind kind = Kind::end_of_source;
  std::string text;
  int line = 1;
};

/// Throws Error(bad_model) naming the line. The last token is end_of_source.
[[nodiscard]] std::vector<Token> tokenize(std::string_view source);

}  // namespace glimpse::jinja
