#include "runtime/constraint_factory.h"

#include <algorithm>

#include "base/check.h"
#include "base/json.h"
#include "text/grammar_constraint.h"

namespace glimpse {
namespace {

struct Tool {
  std::string name;
  Json parameters;
  std::optional<bool> strict;
};

std::vector<Tool> tools_of(const Request& request) {
  std::vector<Tool> tools;
  if (request.tools_json.empty() || request.tool_choice == ToolChoice::none) return tools;
  const Json list =
      parse_json(request.tools_json, "the tools of a request", ErrorCode::invalid_argument);
  const auto malformed = [](const std::string& what) {
    return Error(ErrorCode::invalid_argument, what,
                 "tools are a list of {\"type\": \"function\", \"function\": {\"name\": ...}}");
  };
  if (!list.is_array()) throw malformed("the tools of a request are no list");
  for (const Json& entry : list) {
    const Json& function =
        entry.is_object() && entry.contains("function") ? entry["function"] : entry;
    const bool has_name =
        function.is_object() && function.contains("name") && function["name"].is_string();
    if (!has_name) throw malformed("a tool has no name");
    Tool tool{.name = function["name"].get<std::string>(),
              .parameters = function.value("parameters", Json())};
    if (const Json strict = function.value("strict", Json()); strict.is_boolean()) {
      tool.strict = strict.get<bool>();
    }
    tools.push_back(std::move(tool));
  }
  return tools;
}

// Under a forced call the parameters count unless a tool says that they do not; otherwise only
// where a tool says that they do.
std::vector<ToolSchema> schemas_of(const std::vector<Tool>& tools, bool strict_by_default) {
  std::vector<ToolSchema> schemas;
  for (const Tool& tool : tools) {
    const bool is_strict = tool.strict.value_or(strict_by_default);
    schemas.push_back({tool.name, is_strict ? tool.parameters : Json()});
  }
  return schemas;
}

bool forces_call(const Request& request) {
  return request.tool_choice == ToolChoice::required || request.tool_choice == ToolChoice::named;
}

AnswerForm forced_call(const Request& request, std::vector<Tool> tools) {
  if (request.response_format.kind != ResponseFormat::Kind::text) {
    throw Error(ErrorCode::invalid_argument,
                "an answer cannot be a tool call and have a response format at once",
                "use tool_choice auto, or leave response_format out");
  }
  const bool is_named = request.tool_choice == ToolChoice::named;
  if (is_named) {
    std::erase_if(tools, [&](const Tool& tool) { return tool.name != request.tool_name; });
  }
  if (tools.empty()) {
    throw Error(ErrorCode::invalid_argument,
                is_named ? fmt::format("there is no tool {} to call", request.tool_name)
                         : std::string("there is no tool to call"),
                "give the tool, or use tool_choice auto");
  }
  return {.tools = schemas_of(tools, true),
          .several_calls = request.parallel_tool_calls && !is_named};
}

AnswerForm formatted(const Request& request, const std::vector<Tool>& tools) {
  AnswerForm form{.value = AnswerForm::Value::any_object,
                  .tools = schemas_of(tools, false),
                  .several_calls = request.parallel_tool_calls};
  if (request.response_format.kind == ResponseFormat::Kind::json_schema) {
    form.value = AnswerForm::Value::schema;
    form.schema = parse_json(request.response_format.json_schema, "the JSON schema",
                             ErrorCode::invalid_argument);
  }
  return form;
}

// Grammars are the same when these are.
std::string key_of(const AnswerForm& form) {
  Json key = {static_cast<int>(form.value), form.schema, form.several_calls, form.after_first_tag,
              form.after_reasoning};
  for (const ToolSchema& tool : form.tools) key.push_back({tool.name, tool.parameters});
  return key.dump();
}

}  // namespace

std::unique_ptr<TokenConstraint> ConstraintFactory::make(const Request& request,
                                                         bool after_reasoning) {
  const std::vector<Tool> tools = tools_of(request);
  const bool has_format = request.response_format.kind != ResponseFormat::Kind::text;
  if (!has_format && !forces_call(request)) {
    const bool is_free = std::none_of(tools.begin(), tools.end(),
                                      [](const Tool& tool) { return tool.strict == true; }) &&
                         request.parallel_tool_calls;
    if (tools.empty() || is_free) return nullptr;
    const TokenId trigger =
        model_.text.tokenizer ? model_.text.tokenizer->find(kToolCallBegin) : TokenId{-1};
    if (trigger < 0 || !model_.text.tokenizer->is_added(trigger)) {
      throw Error(ErrorCode::unsupported, "this model has no token that begins a tool call",
                  "leave out strict, and parallel_tool_calls");
    }
    return std::make_unique<TriggeredConstraint>(
        masks_of({.tools = schemas_of(tools, false), .after_first_tag = true}), trigger,
        request.parallel_tool_calls ? TriggeredConstraint::Passages::any_number
                                    : TriggeredConstraint::Passages::at_most_one);
  }
  AnswerForm form =
      has_format && !forces_call(request) ? formatted(request, tools) : forced_call(request, tools);
  form.after_reasoning = after_reasoning;
  return std::make_unique<GrammarConstraint>(masks_of(form));
}

std::shared_ptr<GrammarMasks> ConstraintFactory::masks_of(const AnswerForm& form) {
  constexpr size_t kMaxKnown = 16;
  if (!model_.text.tokenizer || model_.files.generation.eos_token_ids.empty()) {
    throw Error(ErrorCode::unsupported,
                "this checkpoint has no tokenizer, or no token that ends an answer",
                "answers of a given form need both");
  }
  std::string key = key_of(form);
  {
    const std::lock_guard lock(mutex_);
    const auto known = std::find_if(known_.begin(), known_.end(),
                                    [&](const auto& entry) { return entry.first == key; });
    if (known != known_.end() && !known->second->is_worn()) {
      std::rotate(known_.begin(), known, known + 1);
      return known_.front().second;
    }
    if (known != known_.end()) known_.erase(known);
  }
  auto masks = std::make_shared<GrammarMasks>(compile_answer(form, *model_.text.tokenizer), index(),
                                              model_.files.generation.eos_token_ids);
  // Here rather than during a step: the first mask, and what it throws for.
  static_cast<void>(masks->mask(masks->start()));
  const std::lock_guard lock(mutex_);
  known_.emplace_front(std::move(key), masks);
  if (known_.size() > kMaxKnown) known_.pop_back();
  return masks;
}

std::shared_ptr<const TokenIndex> ConstraintFactory::index() {
  const std::lock_guard lock(mutex_);
  if (!index_) {
    index_ = std::make_shared<const TokenIndex>(
        *model_.text.tokenizer, static_cast<TokenId>(model_.files.config.text.vocab_size));
  }
  return index_;
}

}  // namespace glimpse
