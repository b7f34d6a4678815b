// The grammar of a whole answer: JSON of a given form, tool calls, or either.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

namespace glimpse {

inline constexpr std::string_view kToolCallBegin = "<tool_call>";

struct ToolSchema {
  std::string name;
  Json parameters;  ///< schema of the arguments; null or {}: any object
};

/// What an answer may be.
struct AnswerForm {
  enum class Value { none, any_object, schema };
  Value value = Value::none;
  Json schema;
  std::vector<ToolSchema> tools;
  bool several_calls = false;    ///< calls may follow one another
  bool after_first_tag = false;  ///< <tool_call> has been written already
  bool after_reasoning = false;  ///< a blank line may come first
};

/// Calls are <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>; the tags are the
/// tokenizer's own tokens where it has them. Throws as compile_json_schema() does.
[[nodiscard]] Grammar compile_answer(const AnswerForm& form, const Tokenizer& tokenizer);

}  // namespace glimpse
