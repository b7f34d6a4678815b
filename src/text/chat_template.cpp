#include "text/chat_template.h"

#include <fmt/format.h>

#include "base/mapped_file.h"
#include "text/builtin_templates.h"
#include "text/jinja_evaluation.h"
#include "text/jinja_syntax.h"

namespace glimpse {
namespace {

using jinja::Value;
using jinja::Variables;

std::string read_text(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The template in a "chat_template" value: a string, or a list of named ones with a "default".
/// Empty when there is none.
std::string named_template(const Json& config) {
  if (!config.is_object() || !config.contains("chat_template")) return {};
  const Json& value = config["chat_template"];
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return {};
  for (const Json& entry : value) {
    if (entry.is_object() && entry.value("name", Json()) == "default" &&
        entry.contains("template") && entry["template"].is_string()) {
      return entry["template"].get<std::string>();
    }
  }
  throw Error(ErrorCode::unsupported,
              "tokenizer_config.json lists chat templates but no \"default\"");
}

/// bos_token and its like, as templates may name them.
Variables special_tokens(const Json& config) {
  Variables variables;
  if (!config.is_object()) return variables;
  for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token"}) {
    if (!config.contains(name)) continue;
    const Json& token = config[name];
    const Json& text = token.is_object() && token.contains("content") ? token["content"] : token;
    if (text.is_string()) {
      variables.emplace_back(name, Value::from_json(text, TextSource::chat_template));
    }
  }
  return variables;
}

}  // namespace

struct ChatTemplate::Program {
  jinja::Body body;
  Variables special_tokens;
};

ChatTemplate::ChatTemplate(std::string_view source)
    : program_(std::make_unique<Program>(Program{jinja::parse_template(source), {}})) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

ChatTemplate ChatTemplate::instruct() {
  return ChatTemplate(instruct_template_source());
}
ChatTemplate ChatTemplate::thinking() {
  return ChatTemplate(thinking_template_source());
}

ChatTemplate ChatTemplate::from_directory(const std::filesystem::path& directory) {
  const auto config_path = directory / "tokenizer_config.json";
  const Json config = std::filesystem::exists(config_path) ? read_json_file(config_path) : Json();
  if (!config.is_null() && !config.is_object()) {
    throw Error(ErrorCode::bad_model, "tokenizer_config.json is not an object",
                "the file is damaged: download it again");
  }
  std::string source;
  if (std::filesystem::exists(directory / "chat_template.jinja")) {
    source = read_text(directory / "chat_template.jinja");
  } else if (std::filesystem::exists(directory / "chat_template.json")) {
    source = named_template(read_json_file(directory / "chat_template.json"));
  }
  if (source.empty()) source = named_template(config);
  ChatTemplate result = source.empty() ? instruct() : ChatTemplate(source);
  result.program_->special_tokens = special_tokens(config);
  return result;
}

std::vector<TextPiece> ChatTemplate::render(const Json& messages,
                                            const ChatTemplateOptions& options) const {
  if (!messages.is_array()) {
    throw Error(ErrorCode::invalid_argument, "messages is no list", "give a list of messages");
  }
  Variables variables;
  // The first of a name is found: a request's own variables cannot hide what the caller decides.
  const auto add = [&](const std::string& name, const Json& value) {
    variables.emplace_back(name, Value::from_json(value, TextSource::conversation));
  };
  add("messages", messages);
  add("tools", options.tools);
  add("add_generation_prompt", options.add_generation_prompt);
  add("add_vision_id", options.add_vision_id);
  for (const auto& token : program_->special_tokens) variables.push_back(token);
  if (options.extra.is_object()) {
    for (const auto& [name, value] : options.extra.items()) add(name, value);
  } else if (!options.extra.is_null()) {
    throw Error(ErrorCode::invalid_argument, "chat_template_kwargs is no object");
  }
  return jinja::Evaluation(std::move(variables)).render(program_->body).pieces();
}

std::string concatenate(const std::vector<TextPiece>& pieces) {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

}  // namespace glimpse
