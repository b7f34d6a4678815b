#include "text/answer_grammar.h"

#include <fmt/format.h>

#include "text/json_schema.h"

namespace glimpse {
namespace {

StateId add_tag(GrammarBuilder& builder, StateId from, const Tokenizer& tokenizer,
                std::string_view text) {
  const TokenId id = tokenizer.find(text);
  return id >= 0 && tokenizer.is_added(id) ? builder.added_token(from, id)
                                           : builder.literal(from, text);
}

StateId add_value(GrammarBuilder& builder, StateId from, const AnswerForm& form) {
  return form.value == AnswerForm::Value::any_object
             ? builder.any_object(from)
             : add_json_schema(builder, from, form.schema, "the JSON schema");
}

StateId add_tool_calls(GrammarBuilder& builder, StateId from, const AnswerForm& form,
                       const Tokenizer& tokenizer) {
  const StateId body = builder.new_state();
  const StateId tool_end = builder.new_state();
  builder.jump(form.after_first_tag ? from : add_tag(builder, from, tokenizer, kToolCallBegin),
               body);
  const StateId opened = builder.literal(body, "\n{\"name\": ");
  for (const ToolSchema& tool : form.tools) {
    const StateId name = builder.new_state();
    builder.jump(opened, name);
    const StateId arguments = builder.literal(name, Json(tool.name).dump() + ", \"arguments\": ");
    const bool is_free = tool.parameters.is_null() || tool.parameters.empty();
    builder.jump(is_free ? builder.any_object(arguments)
                         : add_json_schema(builder, arguments, tool.parameters,
                                           fmt::format("the parameters of tool {}", tool.name)),
                 tool_end);
  }
  const StateId end = add_tag(builder, builder.literal(tool_end, "}\n"), tokenizer, "</tool_call>");
  if (form.several_calls) {
    builder.jump(add_tag(builder, builder.literal(end, "\n"), tokenizer, kToolCallBegin), body);
  }
  return end;
}

}  // namespace

Grammar compile_answer(const AnswerForm& form, const Tokenizer& tokenizer) {
  GrammarBuilder builder;
  const StateId start = builder.new_state();
  const StateId answer = builder.new_state();
  const StateId end = builder.new_state();
  builder.jump(start, answer);
  if (form.after_reasoning) builder.jump(builder.literal(start, "\n\n"), answer);
  if (form.value != AnswerForm::Value::none) {
    const StateId value = builder.new_state();
    builder.jump(answer, value);
    builder.jump(add_value(builder, value, form), end);
  }
  if (!form.tools.empty()) {
    const StateId calls = builder.new_state();
    builder.jump(answer, calls);
    builder.jump(add_tool_calls(builder, calls, form, tokenizer), end);
  }
  return builder.finish(start, end);
}

}  // namespace glimpse
