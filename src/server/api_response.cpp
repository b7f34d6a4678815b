#include "server/api_response.h"

#include <fmt/format.h>

namespace glimpse {
namespace {

bool is_chat(const ApiAnswerHead& head) {
  return head.kind == ApiKind::chat;
}

Json object_of(const ApiAnswerHead& head, const std::string& kind) {
  return {{"id", head.id}, {"object", kind}, {"created", head.created}, {"model", head.model}};
}

// ---- log-probabilities ------------------------------------------------------------------------

Json chat_token(const TokenLogProb& token) {
  Json bytes = Json::array();
  for (const char c : token.bytes) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", token.bytes}, {"logprob", token.log_prob}, {"bytes", std::move(bytes)}};
}

Json chat_logprobs(const std::vector<TokenLogProbs>& tokens) {
  Json content = Json::array();
  for (const TokenLogProbs& token : tokens) {
    Json entry = chat_token(token.chosen);
    entry["top_logprobs"] = Json::array();
    for (const TokenLogProb& top : token.top) entry["top_logprobs"].push_back(chat_token(top));
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

// The older form of /v1/completions: parallel lists.
Json completion_logprobs(const std::vector<TokenLogProbs>& tokens) {
  Json texts = Json::array();
  Json values = Json::array();
  Json tops = Json::array();
  for (const TokenLogProbs& token : tokens) {
    texts.push_back(token.chosen.bytes);
    values.push_back(token.chosen.log_prob);
    Json top = Json::object();
    for (const TokenLogProb& other : token.top) {
      // A key must be text: bytes that are none are written as they are in the list of tokens.
      top[other.bytes] = other.log_prob;
    }
    tops.push_back(std::move(top));
  }
  return {{"tokens", texts}, {"token_logprobs", values}, {"top_logprobs", tops}};
}

Json logprobs_of(const ApiAnswerHead& head, const std::vector<TokenLogProbs>& tokens) {
  if (tokens.empty()) return nullptr;
  return is_chat(head) ? chat_logprobs(tokens) : completion_logprobs(tokens);
}

// ---- usage ------------------------------------------------------------------------------------

Json picture_usage(const PictureUsage& picture) {
  return {{"width", picture.original_width},
          {"height", picture.original_height},
          {"resized_width", picture.resized_width},
          {"resized_height", picture.resized_height},
          {"grid_thw", {picture.grid_t, picture.grid_h, picture.grid_w}},
          {"visual_tokens", picture.visual_tokens},
          {"from_cache", picture.from_cache}};
}

Json timings_json(const Timings& timings) {
  return {{"queue_ms", timings.queue},
          {"picture_decode_ms", timings.picture_decode},
          {"picture_resize_ms", timings.picture_resize},
          {"vision_ms", timings.vision},
          {"prefill_ms", timings.prefill},
          {"decode_ms", timings.decode},
          {"first_token_ms", timings.first_token},
          {"total_ms", timings.total}};
}

// Choices of one prompt share it: it counts once.
Json usage_json(const ApiAnswerHead& head, const std::vector<Answer>& choices) {
  Usage sum;
  Json pictures = Json::array();
  int64_t visual_tokens = 0;
  for (size_t i = 0; i < choices.size(); ++i) {
    const Usage& usage = choices[i].usage;
    sum.completion_tokens += usage.completion_tokens;
    sum.reasoning_tokens += usage.reasoning_tokens;
    if (i % head.choices_per_prompt != 0) continue;
    sum.prompt_tokens += usage.prompt_tokens;
    sum.cached_prompt_tokens += usage.cached_prompt_tokens;
    for (const PictureUsage& picture : usage.pictures) {
      pictures.push_back(picture_usage(picture));
      visual_tokens += picture.visual_tokens;
    }
  }
  return {{"prompt_tokens", sum.prompt_tokens},
          {"completion_tokens", sum.completion_tokens},
          {"total_tokens", sum.prompt_tokens + sum.completion_tokens},
          {"prompt_tokens_details",
           {{"cached_tokens", sum.cached_prompt_tokens}, {"visual_tokens", visual_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", sum.reasoning_tokens}}},
          {"pictures", std::move(pictures)}};
}

// ---- choices ----------------------------------------------------------------------------------

// Unique within the conversation: the answer's id is.
std::string call_id(const ApiAnswerHead& head, size_t choice, size_t call) {
  return fmt::format("call_{}_{}_{}", head.id.substr(head.id.rfind('-') + 1), choice, call);
}

Json tool_calls_json(const ApiAnswerHead& head, size_t choice, const std::vector<ToolCall>& calls) {
  Json list = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    list.push_back(
        {{"id", call_id(head, choice, i)},
         {"type", "function"},
         {"function", {{"name", calls[i].name}, {"arguments", calls[i].arguments_json}}}});
  }
  return list;
}

// What does not change stands in a call's first piece only.
Json tool_call_deltas(const ApiAnswerHead& head, size_t choice,
                      const std::vector<ToolCallPiece>& pieces) {
  Json list = Json::array();
  for (const ToolCallPiece& piece : pieces) {
    Json delta = {{"index", piece.index}};
    if (!piece.name.empty()) {
      delta["id"] = call_id(head, choice, static_cast<size_t>(piece.index));
      delta["type"] = "function";
      delta["function"]["name"] = piece.name;
    }
    delta["function"]["arguments"] = piece.arguments;
    list.push_back(std::move(delta));
  }
  return list;
}

Json chat_message(const ApiAnswerHead& head, size_t choice, const Answer& answer) {
  Json message = {{"role", "assistant"}, {"content", answer.text}};
  if (!answer.reasoning.empty()) message["reasoning_content"] = answer.reasoning;
  if (!answer.tool_calls.empty()) {
    if (answer.text.empty()) message["content"] = nullptr;
    message["tool_calls"] = tool_calls_json(head, choice, answer.tool_calls);
  }
  return message;
}

Json chunk(const ApiAnswerHead& head, Json choices) {
  Json value = object_of(head, is_chat(head) ? "chat.completion.chunk" : "text_completion");
  value["choices"] = std::move(choices);
  return value;
}

Json chat_choice(size_t choice, Json delta) {
  return {{"index", choice}, {"delta", std::move(delta)}, {"finish_reason", nullptr}};
}

Json completion_choice(size_t choice, const std::string& text) {
  return {{"index", choice}, {"text", text}, {"finish_reason", nullptr}};
}

}  // namespace

std::string api_name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::loop:
      return "loop";
    case FinishReason::tool_calls:
      return "tool_calls";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return "error";
}

Json whole_answer(const ApiAnswerHead& head, const std::vector<Answer>& answers) {
  Json choices = Json::array();
  for (size_t i = 0; i < answers.size(); ++i) {
    const Answer& answer = answers[i];
    Json choice = {{"index", i}};
    if (is_chat(head)) {
      choice["message"] = chat_message(head, i, answer);
    } else {
      choice["text"] = answer.reasoning + answer.text;
    }
    choice["logprobs"] = logprobs_of(head, answer.logprobs);
    choice["finish_reason"] = api_name_of(answer.finish_reason);
    choices.push_back(std::move(choice));
  }
  Json value = object_of(head, is_chat(head) ? "chat.completion" : "text_completion");
  value["choices"] = std::move(choices);
  value["usage"] = usage_json(head, answers);
  value["timings"] = timings_json(answers.front().timings);
  return value;
}

Json first_chunk(const ApiAnswerHead& head, size_t choice) {
  return chunk(head, Json::array({chat_choice(choice, {{"role", "assistant"}, {"content", ""}})}));
}

Json text_chunk(const ApiAnswerHead& head, size_t choice, const Event& event) {
  Json entry = completion_choice(choice, event.text);
  if (is_chat(head)) {
    Json delta = Json::object();
    if (!event.text.empty() || event.tool_call_pieces.empty()) {
      delta[event.is_reasoning ? "reasoning_content" : "content"] = event.text;
    }
    if (!event.tool_call_pieces.empty()) {
      delta["tool_calls"] = tool_call_deltas(head, choice, event.tool_call_pieces);
    }
    entry = chat_choice(choice, std::move(delta));
  }
  if (!event.logprobs.empty()) entry["logprobs"] = logprobs_of(head, event.logprobs);
  return chunk(head, Json::array({std::move(entry)}));
}

Json last_chunk(const ApiAnswerHead& head, size_t choice, const Event& event) {
  Json entry = is_chat(head) ? chat_choice(choice, Json::object()) : completion_choice(choice, "");
  entry["finish_reason"] = api_name_of(event.finish_reason);
  return chunk(head, Json::array({std::move(entry)}));
}

Json usage_chunk(const ApiAnswerHead& head, const std::vector<Answer>& answers) {
  Json value = chunk(head, Json::array());
  value["usage"] = usage_json(head, answers);
  value["timings"] = timings_json(answers.front().timings);
  return value;
}

std::string to_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace glimpse
