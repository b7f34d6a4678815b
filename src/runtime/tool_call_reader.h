// Tool calls as they are written: name and arguments come out piece by piece, long before the call
// is whole. For calls that follow the grammar of text/answer_grammar.h, which fixes their form.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "glimpse/request.h"

namespace glimpse {

/// Not thread-safe.
class ToolCallReader {
 public:
  /// Takes the next text, <tool_call> and all that follows it; what it says goes to `pieces`.
  void push(std::string_view text, std::vector<ToolCallPiece>& pieces);
  /// False once the text has another form; nothing more comes out then.
  [[nodiscard]] bool follows_form() const { return follows_form_; }
  /// The calls so far; the arguments of the last may be unfinished.
  [[nodiscard]] const std::vector<ToolCall>& calls() const { return calls_; }

 private:
  enum class Place { before_arguments, arguments, after_arguments };

  [[nodiscard]] bool read_head(std::vector<ToolCallPiece>& pieces);
  [[nodiscard]] bool read_arguments(std::vector<ToolCallPiece>& pieces);
  [[nodiscard]] bool skip_tail();

  Place place_ = Place::before_arguments;
  bool follows_form_ = true;
  std::string unread_;
  int depth_ = 0;  // of brackets within the arguments
  bool in_string_ = false;
  bool after_backslash_ = false;
  std::vector<ToolCall> calls_;
};

}  // namespace glimpse
