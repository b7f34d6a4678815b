#include "server/chat_request.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "server/fields.h"
#include "server/message_fields.h"

namespace glimpse {
namespace {

constexpr int kMostTokens = 1 << 20;
constexpr int kMostAlternatives = 20;
constexpr size_t kMostStops = 64;  // the engine's

void take_stop(Fields& fields, SamplingOptions& sampling) {
  const Json* stop = fields.take("stop");
  if (stop == nullptr) return;
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  if (list.size() > kMostStops) {
    fields.refuse("stop",
                  fmt::format("has {} strings, at most {} are possible", list.size(), kMostStops));
  }
  sampling.stop.clear();
  for (const Json& text : list) {
    if (!text.is_string() || text.get_ref<const std::string&>().empty()) {
      fields.refuse("stop", "must be a string that is not empty, or an array of such");
    }
    sampling.stop.push_back(text.get<std::string>());
  }
}

// What chats and completions share.
SamplingOptions take_sampling(Fields& fields, const RequestRules& rules) {
  SamplingOptions sampling = rules.sampling;
  const auto take_float = [&](const char* name, double least, double most, auto& target) {
    if (const auto value = fields.number(name, least, most)) target = static_cast<float>(*value);
  };
  take_float("temperature", 0, 100, sampling.temperature);
  take_float("top_p", 1e-6, 1, sampling.top_p);
  take_float("min_p", 0, 1, sampling.min_p);
  take_float("repetition_penalty", 1e-6, 10, sampling.repetition_penalty);
  take_float("presence_penalty", -2, 2, sampling.presence_penalty);
  take_float("frequency_penalty", -2, 2, sampling.frequency_penalty);
  const auto take_int = [&](const char* name, int64_t least, int64_t most, auto& target) {
    if (const auto value = fields.integer(name, least, most)) target = static_cast<int>(*value);
  };
  take_int("top_k", 0, 1 << 30, sampling.top_k);
  take_int("max_tokens", 1, kMostTokens, sampling.max_tokens);
  if (const auto value = fields.integer("seed", std::numeric_limits<int64_t>::min(),
                                        std::numeric_limits<int64_t>::max())) {
    sampling.seed = static_cast<uint64_t>(*value);
  }
  take_stop(fields, sampling);
  if (const auto value = fields.boolean("ignore_eos")) sampling.ignore_eos = *value;
  if (const auto value = fields.boolean("loop_guard")) sampling.loop_guard = *value;
  // Neutral values that clients are known to send.
  fields.only("logit_bias", Json::object());
  fields.only("service_tier", "auto");
  return sampling;
}

void take_stream(Fields& fields, ApiRequest& request) {
  request.model = fields.text("model").value_or("");
  request.stream = fields.boolean("stream").value_or(false);
  const Json* options = fields.take("stream_options");
  if (options == nullptr) return;
  if (!request.stream) fields.refuse("stream_options", "has no effect without stream");
  Fields stream(*options, fields.path_of("stream_options"));
  request.include_usage = stream.boolean("include_usage").value_or(false);
  stream.refuse_rest();
}

// One request a choice. Each gets a seed of its own, counted up from the one that was given.
void multiply(Fields& fields, ApiRequest& request, const RequestRules& rules) {
  const int64_t n = fields.integer("n", 1, rules.max_choices).value_or(1);
  const std::vector<Request> prompts = std::move(request.requests);
  if (static_cast<int64_t>(prompts.size()) * n > rules.max_choices) {
    fields.refuse("n", fmt::format("times {} prompts is more than {} choices", prompts.size(),
                                   rules.max_choices));
  }
  request.requests.clear();
  request.choices_per_prompt = static_cast<size_t>(n);
  for (const Request& prompt : prompts) {
    for (int64_t i = 0; i < n; ++i) {
      request.requests.push_back(prompt);
      auto& seed = request.requests.back().sampling.seed;
      if (seed) *seed += static_cast<uint64_t>(i);
    }
  }
}

void take_response_format(Fields& fields, Request& request) {
  const Json* format = fields.take("response_format");
  if (format == nullptr) return;
  Fields parts(*format, fields.path_of("response_format"));
  const std::string type = parts.text("type").value_or("");
  if (type == "json_object") {
    request.response_format.kind = ResponseFormat::Kind::json_object;
  } else if (type == "json_schema") {
    request.response_format.kind = ResponseFormat::Kind::json_schema;
    const Json* described = parts.take("json_schema");
    if (described == nullptr) parts.refuse("json_schema", "is missing");
    Fields schema(*described, parts.path_of("json_schema"));
    (void)schema.text("name");
    (void)schema.text("description");
    (void)schema.boolean("strict");  // the answer always follows the schema
    const Json* body = schema.take("schema");
    if (body == nullptr) schema.refuse("schema", "is missing");
    if (!body->is_object() && !body->is_boolean()) schema.refuse("schema", "must be an object");
    request.response_format.json_schema = body->dump();
    schema.refuse_rest();
  } else if (type != "text") {
    parts.refuse("type", "must be text, json_object or json_schema");
  }
  parts.refuse_rest();
}

std::vector<std::string> take_tools(Fields& fields, Request& request) {
  const Json* tools = fields.take("tools");
  std::vector<std::string> names;
  if (tools == nullptr) return names;
  if (!tools->is_array() || tools->empty()) {
    fields.refuse("tools", "must be an array with at least one tool");
  }
  for (size_t i = 0; i < tools->size(); ++i) {
    Fields tool((*tools)[i], fmt::format("tools[{}]", i));
    if (tool.text("type").value_or("") != "function") tool.refuse("type", "must be function");
    const Json* function = tool.take("function");
    if (function == nullptr) tool.refuse("function", "is missing");
    Fields parts(*function, tool.path_of("function"));
    const auto name = parts.text("name");
    if (!name || name->empty()) parts.refuse("name", "is missing");
    names.push_back(*name);
    (void)parts.text("description");
    (void)parts.boolean("strict");
    const Json* parameters = parts.take("parameters");
    if (parameters != nullptr && !parameters->is_object()) {
      parts.refuse("parameters", "must be an object");
    }
    parts.refuse_rest();
    tool.refuse_rest();
  }
  request.tools_json = tools->dump();
  return names;
}

void take_tool_choice(Fields& fields, Request& request, const std::vector<std::string>& names) {
  if (const auto parallel = fields.boolean("parallel_tool_calls")) {
    if (names.empty()) fields.refuse("parallel_tool_calls", "has no effect without tools");
    request.parallel_tool_calls = *parallel;
  }
  const Json* choice = fields.take("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_object()) {
    Fields parts(*choice, "tool_choice");
    parts.only("type", "function");
    const Json* function = parts.take("function");
    if (function == nullptr) parts.refuse("function", "is missing");
    Fields named(*function, "tool_choice.function");
    request.tool_name = named.text("name").value_or("");
    request.tool_choice = ToolChoice::named;
    if (std::find(names.begin(), names.end(), request.tool_name) == names.end()) {
      named.refuse("name", "is not one of the tools");
    }
    named.refuse_rest();
    parts.refuse_rest();
    return;
  }
  if (*choice == "none") {
    request.tool_choice = ToolChoice::none;
    return;
  }
  if (*choice != "auto" && *choice != "required") {
    fields.refuse("tool_choice", "must be none, auto, required or a function");
  }
  if (names.empty()) fields.refuse("tool_choice", "has no effect without tools");
  if (*choice == "required") request.tool_choice = ToolChoice::required;
}

void take_chat_sampling(Fields& fields, SamplingOptions& sampling) {
  if (const auto value = fields.integer("max_completion_tokens", 1, kMostTokens)) {
    if (fields.take("max_tokens") != nullptr) {
      fields.refuse("max_tokens", "and max_completion_tokens are two names of one option",
                    "give one of them");
    }
    sampling.max_tokens = static_cast<int>(*value);
  }
  if (const auto value = fields.integer("thinking_budget", 0, kMostTokens)) {
    sampling.thinking_budget = static_cast<int>(*value);
  }
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto alternatives = fields.integer("top_logprobs", 0, kMostAlternatives);
  if (alternatives && !logprobs) fields.refuse("top_logprobs", "has no effect without logprobs");
  sampling.logprobs = logprobs ? static_cast<int>(alternatives.value_or(0)) : -1;
}

Request raw_request(const Json& prompt, const SamplingOptions& sampling) {
  Request request;
  request.sampling = sampling;
  if (prompt.is_string()) {
    request.raw_prompt = prompt.get<std::string>();
    if (!request.raw_prompt.empty()) return request;
    throw RequestError(400, "prompt is empty", "prompt");
  }
  for (const Json& token : prompt) {
    const bool fits = token.is_number_integer() && token.get<int64_t>() >= 0 &&
                      token.get<int64_t>() <= std::numeric_limits<int32_t>::max();
    if (!fits) throw RequestError(400, "prompt has a token that is no token id", "prompt");
    request.raw_tokens.push_back(token.get<int32_t>());
  }
  return request;
}

// A string, strings, token ids, or arrays of token ids.
std::vector<Request> raw_requests(const Json& prompt, const SamplingOptions& sampling,
                                  const RequestRules& rules) {
  const bool is_list = prompt.is_array() && !prompt.empty();
  if (prompt.is_string() || (is_list && prompt.front().is_number())) {
    return {raw_request(prompt, sampling)};
  }
  if (!is_list || static_cast<int>(prompt.size()) > rules.max_choices) {
    throw RequestError(
        400,
        fmt::format("prompt must be a string, token ids, or 1 to {} of these", rules.max_choices),
        "prompt");
  }
  std::vector<Request> requests;
  for (const Json& one : prompt) {
    if (!one.is_string() && !(one.is_array() && !one.empty())) {
      throw RequestError(400, "prompt has an entry that is neither a string nor token ids",
                         "prompt");
    }
    requests.push_back(raw_request(one, sampling));
  }
  return requests;
}

Json parse_body(std::string_view body) {
  try {
    return parse_json(body, "the request body", ErrorCode::invalid_argument);
  } catch (const Error& error) {
    throw RequestError(400, error.what(), {}, error.hint(), "invalid_json");
  }
}

}  // namespace

ApiRequest parse_chat_request(std::string_view body, const RequestRules& rules) {
  const Json json = parse_body(body);
  Fields fields(json, "");
  ApiRequest result;
  take_stream(fields, result);
  Request request;
  request.sampling = take_sampling(fields, rules);
  take_chat_sampling(fields, request.sampling);
  const Json* messages = fields.take("messages");
  if (messages == nullptr) fields.refuse("messages", "is missing");
  request.messages = parse_messages(*messages, rules, result.remote_pictures);
  take_response_format(fields, request);
  const std::vector<std::string> tool_names = take_tools(fields, request);
  take_tool_choice(fields, request, tool_names);
  request.add_vision_id = fields.boolean("add_vision_id").value_or(false);
  if (const Json* arguments = fields.take("chat_template_kwargs")) {
    if (!arguments->is_object()) fields.refuse("chat_template_kwargs", "must be an object");
    request.template_arguments_json = arguments->dump();
  }
  fields.only("store", false);
  fields.only("functions", Json::array());
  fields.only("modalities", Json::array({"text"}));
  result.requests.push_back(std::move(request));
  multiply(fields, result, rules);
  fields.refuse_rest();
  return result;
}

ApiRequest parse_completion_request(std::string_view body, const RequestRules& rules) {
  const Json json = parse_body(body);
  Fields fields(json, "");
  ApiRequest result;
  take_stream(fields, result);
  SamplingOptions sampling = take_sampling(fields, rules);
  sampling.logprobs =
      static_cast<int>(fields.integer("logprobs", 0, kMostAlternatives).value_or(-1));
  const Json* prompt = fields.take("prompt");
  if (prompt == nullptr) fields.refuse("prompt", "is missing");
  result.requests = raw_requests(*prompt, sampling, rules);
  fields.only("echo", false);
  fields.only("suffix", "");
  fields.only("best_of", 1);
  multiply(fields, result, rules);
  fields.refuse_rest();
  return result;
}

}  // namespace glimpse
