#include "runtime/prompt.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <utility>

#include "base/input_limits.h"
#include "image/decode.h"

namespace glimpse {
namespace {

class Stopwatch {
 public:
  [[nodiscard]] double milliseconds() const {
    return std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

// ---- pictures -------------------------------------------------------------------------------

std::string name_of(const Picture& picture) {
  if (!picture.name.empty()) return picture.name;
  return picture.path.empty() ? "picture" : picture.path.string();
}

// Empty for a regular file.
std::string why_unreadable(const std::filesystem::path& path) {
  std::error_code failed;
  const std::filesystem::file_status status = std::filesystem::status(path, failed);
  if (status.type() == std::filesystem::file_type::not_found) return "there is no such file";
  if (failed) return fmt::format("the file cannot be read: {}", failed.message());
  return std::filesystem::is_regular_file(status) ? "" : "it is not a regular file";
}

void read_file(Picture& picture) {
  if (!picture.bytes.empty() || picture.path.empty()) return;
  if (const std::string fault = why_unreadable(picture.path); !fault.empty()) {
    throw Error(ErrorCode::not_found, fmt::format("{}: {}", name_of(picture), fault),
                "check the path of the picture");
  }
  std::ifstream file(picture.path, std::ios::binary | std::ios::ate);
  if (!file) {
    throw Error(
        ErrorCode::not_found,
        fmt::format("{}: the file cannot be read: {}", name_of(picture), std::strerror(errno)),
        "check who may read the file");
  }
  const auto size = static_cast<int64_t>(file.tellg());
  if (size > kMaxPictureFileBytes) {
    throw Error(ErrorCode::bad_picture,
                fmt::format("{} has {} MiB, a picture file may have at most {}", name_of(picture),
                            size >> 20, kMaxPictureFileBytes >> 20),
                "give a picture of fewer pixels");
  }
  picture.bytes.resize(static_cast<size_t>(size));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(picture.bytes.data()),
            static_cast<std::streamsize>(picture.bytes.size()));
  if (!file) {
    throw Error(ErrorCode::not_found, fmt::format("{}: the file cannot be read", name_of(picture)),
                "check the file and its disk");
  }
}

ProcessedPicture resized(const LoadedModel& model, const Picture& picture, RgbImage image,
                         WorkerPool* helpers) {
  const EngineShape& shape = model.plan.shape;
  const int64_t max_pixels = picture.max_pixels > 0 ? picture.max_pixels : shape.max_pixels;
  // A caller's lower maximum brings the minimum down with it.
  int64_t min_pixels =
      picture.min_pixels > 0 ? picture.min_pixels : std::min(shape.min_pixels, max_pixels);
  const ImageProcessor processor(model.files.pictures);
  const PictureSize original{.height = image.height, .width = image.width};
  PictureSize size = processor.resized_size(original, min_pixels, max_pixels);
  const int64_t side = model.files.pictures.patch_size;
  const auto is_too_large = [&] {
    return size.height / side * (size.width / side) > shape.max_picture_patches;
  };
  // Scaling up to a minimum rounds up, over the maximum where the two are near each other.
  if (is_too_large() && max_pixels <= shape.max_pixels) {
    min_pixels = 1;
    size = processor.resized_size(original, min_pixels, max_pixels);
  }
  if (is_too_large()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: {} x {} pixels after resizing are more than this engine's {}",
                            name_of(picture), size.width, size.height, shape.max_pixels),
                "lower the picture's max_pixels, or start with a larger --max-pixels");
  }
  return processor.process(std::move(image), min_pixels, max_pixels, helpers);
}

PictureUsage usage_of(const ProcessedPicture& picture, int64_t num_tokens) {
  PictureUsage usage;
  usage.original_width = picture.original.width;
  usage.original_height = picture.original.height;
  usage.resized_width = picture.resized.width;
  usage.resized_height = picture.resized.height;
  usage.grid_t = picture.grid.t;
  usage.grid_h = picture.grid.h;
  usage.grid_w = picture.grid.w;
  usage.visual_tokens = num_tokens;
  return usage;
}

// ---- text -----------------------------------------------------------------------------------

Json parse_field(const std::string& text, std::string_view what) {
  return text.empty() ? Json(nullptr) : parse_json(text, what, ErrorCode::invalid_argument);
}

// A message as transformers' apply_chat_template takes it.
Json template_message(const Message& message) {
  Json json{{"role", message.role}};
  bool has_picture = false;
  for (const Part& part : message.parts) has_picture |= part.picture.has_value();
  if (has_picture) {
    Json content = Json::array();
    for (const Part& part : message.parts) {
      if (part.picture) {
        content.push_back({{"type", "image"}});
      } else {
        content.push_back({{"type", "text"}, {"text", part.text}});
      }
    }
    json["content"] = std::move(content);
  } else {
    std::string text;
    for (const Part& part : message.parts) text += part.text;
    json["content"] = std::move(text);
  }
  if (!message.reasoning_content.empty()) json["reasoning_content"] = message.reasoning_content;
  if (!message.tool_calls_json.empty()) {
    json["tool_calls"] = parse_field(message.tool_calls_json, "the tool calls of a message");
  }
  if (!message.tool_call_id.empty()) json["tool_call_id"] = message.tool_call_id;
  return json;
}

std::vector<TokenId> encode_messages(const LoadedModel& model, const Request& request) {
  Json messages = Json::array();
  for (const Message& message : request.messages) messages.push_back(template_message(message));
  ChatTemplateOptions options;
  options.add_vision_id = request.add_vision_id;
  if (request.tool_choice != ToolChoice::none) {
    options.tools = parse_field(request.tools_json, "the tools of a request");
  }
  options.extra = parse_field(request.template_arguments_json, "the template arguments");
  return model.text.tokenizer->encode(model.text.chat_template->render(messages, options));
}

std::vector<TokenId> encode(const LoadedModel& model, const Request& request) {
  if (!request.messages.empty()) return encode_messages(model, request);
  if (!request.raw_prompt.empty()) return model.text.tokenizer->encode(request.raw_prompt);
  const auto vocabulary = static_cast<int32_t>(model.files.config.text.vocab_size);
  for (const int32_t id : request.raw_tokens) {
    if (id < 0 || id >= vocabulary) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("token id {} is outside the vocabulary of {}", id, vocabulary),
                  "use ids of this model's tokenizer");
    }
  }
  return request.raw_tokens;
}

bool leaves_reasoning_open(const LoadedModel& model, const Request& request,
                           const std::vector<TokenId>& tokens) {
  if (request.messages.empty()) return false;
  const TokenId begin = model.text.tokenizer->find("<think>");
  const TokenId end = model.text.tokenizer->find("</think>");
  if (begin < 0 || end < 0) return false;
  for (auto token = tokens.rbegin(); token != tokens.rend(); ++token) {
    if (*token == end) return false;
    if (*token == begin) return true;
  }
  return false;
}

// Each placeholder becomes as many as its picture has tokens.
std::vector<TokenId> expand_placeholders(const std::vector<TokenId>& tokens, TokenId placeholder,
                                         const std::vector<PreparedPicture>& pictures,
                                         int64_t merge_size) {
  std::vector<TokenId> expanded;
  size_t next = 0;
  for (const TokenId token : tokens) {
    if (token != placeholder || placeholder < 0) {
      expanded.push_back(token);
      continue;
    }
    if (next < pictures.size()) {
      const int64_t count = pictures[next].processed.grid.num_patches() / (merge_size * merge_size);
      expanded.insert(expanded.end(), static_cast<size_t>(count), placeholder);
    }
    ++next;
  }
  if (next != pictures.size()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the prompt has places for {} pictures, the request has {}", next,
                            pictures.size()),
                "give one placeholder a picture; some chat templates have none");
  }
  return expanded;
}

void place_pictures(const LoadedModel& model, PreparedPrompt& prompt) {
  std::vector<PatchGrid> grids;
  for (const PreparedPicture& picture : prompt.pictures) grids.push_back(picture.processed.grid);
  const int64_t merge_size = model.has_vision() ? model.files.config.vision->spatial_merge_size : 1;
  const std::vector<VisualSpan> spans =
      find_visual_spans(prompt.tokens, model.has_vision() ? model.files.config.image_token_id : -1,
                        grids, merge_size);
  for (size_t i = 0; i < spans.size(); ++i) {
    PreparedPicture& picture = prompt.pictures[i];
    picture.span = spans[i];
    picture.usage = usage_of(picture.processed, spans[i].num_tokens(merge_size));
  }
  prompt.positions =
      sequence_positions(static_cast<int64_t>(prompt.tokens.size()), spans, merge_size);
}

void check_length(const LoadedModel& model, const PreparedPrompt& prompt) {
  const auto tokens = static_cast<int64_t>(prompt.tokens.size());
  const int64_t context = model.plan.shape.context;
  if (tokens == 0) {
    throw Error(ErrorCode::invalid_argument, "the prompt is empty", "say something");
  }
  if (tokens < context) return;
  throw Error(ErrorCode::context_exceeded,
              fmt::format("prompt has {} tokens, context is {}", tokens, context),
              prompt.pictures.empty() ? "shorten the prompt or raise --context"
                                      : "lower --max-pixels, shorten the prompt or raise "
                                        "--context");
}

}  // namespace

std::vector<Picture*> pictures_of(Request& request) {
  std::vector<Picture*> pictures;
  for (Picture& picture : request.raw_pictures) pictures.push_back(&picture);
  for (Message& message : request.messages) {
    for (Part& part : message.parts) {
      if (part.picture) pictures.push_back(&*part.picture);
    }
  }
  return pictures;
}

void check_prompt(const LoadedModel& model, Request& request) {
  const int kinds = (request.messages.empty() ? 0 : 1) + (request.raw_prompt.empty() ? 0 : 1) +
                    (request.raw_tokens.empty() ? 0 : 1);
  if (kinds != 1) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("a request has exactly one of messages, raw prompt and raw tokens; "
                            "this one has {}",
                            kinds));
  }
  if (!request.messages.empty() && !request.raw_pictures.empty()) {
    throw Error(ErrorCode::invalid_argument, "raw pictures belong to a raw prompt, not to messages",
                "put pictures into the parts of a message");
  }
  if (!model.text.tokenizer && request.raw_tokens.empty()) {
    throw Error(ErrorCode::unsupported, "this checkpoint has no tokenizer.json",
                "put the model's tokenizer.json into its directory");
  }
  const std::vector<Picture*> pictures = pictures_of(request);
  if (!pictures.empty() && !model.has_vision()) {
    throw Error(ErrorCode::unsupported, "this model has no vision tower: it reads text only",
                "use a Qwen3-VL checkpoint");
  }
  const EngineShape& shape = model.plan.shape;
  for (const Picture* picture : pictures) {
    if (picture->max_pixels > shape.max_pixels || picture->min_pixels > shape.max_pixels) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}: {} pixels are more than this engine's {}", name_of(*picture),
                              std::max(picture->max_pixels, picture->min_pixels), shape.max_pixels),
                  "ask for fewer pixels, or start with a larger --max-pixels");
    }
  }
}

PreparedPrompt prepare_prompt(const LoadedModel& model, Request& request, WorkerPool* helpers) {
  PreparedPrompt prompt;
  for (Picture* picture : pictures_of(request)) {
    read_file(*picture);
    const Stopwatch decode;
    RgbImage image = decode_picture(picture->bytes, name_of(*picture));
    prompt.decode_milliseconds += decode.milliseconds();
    const Stopwatch resize;
    PreparedPicture prepared;
    prepared.processed = resized(model, *picture, std::move(image), helpers);
    prompt.resize_milliseconds += resize.milliseconds();
    prompt.pictures.push_back(std::move(prepared));
  }
  const std::vector<TokenId> tokens = encode(model, request);
  prompt.ends_in_reasoning = leaves_reasoning_open(model, request, tokens);
  prompt.tokens =
      model.has_vision()
          ? expand_placeholders(tokens, model.files.config.image_token_id, prompt.pictures,
                                model.files.config.vision->spatial_merge_size)
          : tokens;
  check_length(model, prompt);
  place_pictures(model, prompt);
  return prompt;
}

ProcessedPicture prepare_picture_again(const LoadedModel& model, const Picture& picture,
                                       WorkerPool* helpers) {
  return resized(model, picture, decode_picture(picture.bytes, name_of(picture)), helpers);
}

}  // namespace glimpse
