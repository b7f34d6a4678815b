// A checkpoint's own chat template, run by a small strict interpreter of the Jinja language that
// remembers which output the template wrote and which came from the conversation.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace glimpse {

struct ChatTemplateOptions {
  bool add_generation_prompt = true;
  bool add_vision_id = false;
  Json tools = nullptr;  ///< array of tool definitions, or null
  Json extra = nullptr;  ///< object: further template variables (chat_template_kwargs), or null
};

/// Immutable after construction; render() is const and thread-safe.
class ChatTemplate {
 public:
  /// Parses Jinja source. Throws Error(unsupported) naming the construct and line it cannot run,
  /// Error(bad_model) for a syntax error.
  explicit ChatTemplate(std::string_view source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  /// The template of a checkpoint directory: chat_template.jinja, chat_template.json or the
  /// chat_template of tokenizer_config.json (a string or a list with a "default"), in this order;
  /// the built-in Instruct template when there is none.
  static ChatTemplate from_directory(const std::filesystem::path& directory);
  /// Qwen3-VL's own templates, for checkpoints without one.
  static ChatTemplate instruct();
  static ChatTemplate thinking();

  /// Renders a conversation. `messages` is the array that transformers' apply_chat_template takes:
  /// [{role, content: string or [{type: "text", text} | {type: "image"} | ...], ...}].
  /// In the pieces, text that the template wrote may hold special tokens; text that came from the
  /// conversation or the tools may not. Neighbouring pieces of the same kind are joined.
  /// Throws Error(invalid_argument) when the template itself raises an exception.
  [[nodiscard]] std::vector<TextPiece> render(const Json& messages,
                                              const ChatTemplateOptions& options) const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

/// All pieces as one string.
[[nodiscard]] std::string concatenate(const std::vector<TextPiece>& pieces);

}  // namespace glimpse
