// Any bytes as a template, with a conversation of every shape; and any JSON as the conversation of
// the built-in templates. The input's two halves meet at the first 0xFF byte.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "text/chat_template.h"

namespace {

using glimpse::ChatTemplate;
using glimpse::Error;
using glimpse::ErrorCode;
using glimpse::Json;

void render(const ChatTemplate& chat, const Json& messages) {
  try {
    const auto pieces = chat.render(messages, {.add_vision_id = true, .tools = messages});
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].text.empty()) __builtin_trap();
      if (i > 0 && pieces[i].may_hold_special_tokens == pieces[i - 1].may_hold_special_tokens) {
        __builtin_trap();
      }
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view source = input.substr(0, input.find('\xFF'));
  const std::string_view text =
      source.size() < size ? input.substr(source.size() + 1) : std::string_view();
  Json messages = Json::parse(
      R"([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a b"}]},
      {"role": "assistant", "content": "<think>x</think>y", "tool_calls": [{"function": {"name": "f", "arguments": {"k": [1, null, 2.5]}}}]}])");
  if (!text.empty()) {
    messages = Json::parse(text, nullptr, false);
    if (messages.is_discarded()) return 0;
    static const ChatTemplate instruct = ChatTemplate::instruct();
    static const ChatTemplate thinking = ChatTemplate::thinking();
    render(instruct, messages);
    render(thinking, messages);
  }
  try {
    const ChatTemplate chat(source);
    render(chat, messages);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) __builtin_trap();
  }
  return 0;
}
