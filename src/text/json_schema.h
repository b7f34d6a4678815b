// JSON schemas as grammars: every answer that follows the grammar is JSON that satisfies the
// schema.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

namespace glimpse {

/// The supported part of JSON Schema is listed in docs/api.md. Members of objects come in the
/// schema's order, and where some are listed there are no others.
/// Throws Error(unsupported) naming a keyword that is not supported and where it stands,
/// Error(invalid_argument) for a schema that is malformed or that nothing can satisfy.
[[nodiscard]] Grammar compile_json_schema(const Json& schema);

/// Any JSON object.
[[nodiscard]] Grammar compile_any_object();

struct ToolSchema {
  std::string name;
  Json parameters;  ///< schema of the arguments; null or {}: any object
};
struct ToolCallForm {
  bool with_first_tag = true;  ///< false: the first <tool_call> has been written already
  bool several = false;        ///< calls may follow one another
};
/// <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call> for one of the tools. The tags are
/// the tokenizer's own tokens where it has them. Throws as compile_json_schema() does.
[[nodiscard]] Grammar compile_tool_calls(const std::vector<ToolSchema>& tools,
                                         const Tokenizer& tokenizer, const ToolCallForm& form);

}  // namespace glimpse
