// The answers of the API as JSON: whole ones, and the pieces of a stream. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "glimpse/request.h"

namespace glimpse {

enum class ApiKind { chat, completion };

/// What every object of one answer carries.
struct ApiAnswerHead {
  ApiKind kind = ApiKind::chat;
  std::string id;       ///< "chatcmpl-..."
  int64_t created = 0;  ///< seconds since 1970
  std::string model;
  size_t choices_per_prompt = 1;  ///< that many neighbours of the choices share a prompt
};

/// "stop", "length", "loop", "tool_calls".
[[nodiscard]] std::string api_name_of(FinishReason reason);

/// The whole answer; one Answer a choice.
[[nodiscard]] Json whole_answer(const ApiAnswerHead& head, const std::vector<Answer>& choices);

/// The first piece of a chat's choice: its role.
[[nodiscard]] Json first_chunk(const ApiAnswerHead& head, size_t choice);
/// One event of kind text.
[[nodiscard]] Json text_chunk(const ApiAnswerHead& head, size_t choice, const Event& event);
/// The end of a choice: its tool calls and its finish reason.
[[nodiscard]] Json last_chunk(const ApiAnswerHead& head, size_t choice, const Event& event);
/// The usage of the whole answer, behind the last choice.
[[nodiscard]] Json usage_chunk(const ApiAnswerHead& head, const std::vector<Answer>& choices);

/// Text of a JSON value; bytes that are not UTF-8 become U+FFFD.
[[nodiscard]] std::string to_text(const Json& value);

}  // namespace glimpse
