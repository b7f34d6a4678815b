#include "server/message_fields.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/data_url.h"
#include "server/fields.h"

namespace glimpse {
namespace {

// "detail": "low" is one picture of this area, as OpenAI defines it.
constexpr int64_t kLowDetailPixels = 512 * 512;
constexpr int64_t kMostPixels = int64_t{1} << 30;

int hexadecimal(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string percent_decoded(std::string_view text, const std::string& path) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? hexadecimal(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? hexadecimal(text[i + 2]) : -1;
    if (high < 0 || low < 0) throw RequestError(400, path + " has a broken % escape", path);
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  if (decoded.find('\0') != decoded.npos) {
    throw RequestError(400, path + " has a zero byte", path);
  }
  return decoded;
}

// One sentence for every file that may not be read, so that nothing is learnt of other folders.
[[noreturn]] void refuse_file(const std::string& path) {
  throw RequestError(400, path + " names no file under the media root", path,
                     "give the path of a picture in the folder the server was started with");
}

Picture picture_of_file(std::string_view url, const std::string& path, const RequestRules& rules) {
  constexpr std::string_view kScheme = "file://";
  if (rules.media_root.empty()) {
    throw RequestError(400,
                       path + " is a local file, and the server was started without --media-root",
                       path, "send the picture as a data URL");
  }
  const std::filesystem::path wanted = percent_decoded(url.substr(kScheme.size()), path);
  if (!wanted.is_absolute()) refuse_file(path);
  std::error_code failed;
  // Symbolic links are followed first: what counts is where the file really is.
  const std::filesystem::path real = std::filesystem::canonical(wanted, failed);
  if (failed) refuse_file(path);
  const auto [root_end, ignored] =
      std::mismatch(rules.media_root.begin(), rules.media_root.end(), real.begin(), real.end());
  if (root_end != rules.media_root.end()) refuse_file(path);
  if (!std::filesystem::is_regular_file(real, failed)) refuse_file(path);
  if (std::filesystem::file_size(real, failed) > rules.max_picture_bytes || failed) {
    throw RequestError(
        400, fmt::format("{} is larger than {} bytes", path, rules.max_picture_bytes), path);
  }
  return {.path = real, .name = path};
}

void take_pixel_limits(Fields& fields, Picture& picture) {
  if (const auto value = fields.integer("min_pixels", 1, kMostPixels)) picture.min_pixels = *value;
  if (const auto value = fields.integer("max_pixels", 1, kMostPixels)) picture.max_pixels = *value;
}

bool is_remote(const std::string& url) {
  return url.rfind("http://", 0) == 0 || url.rfind("https://", 0) == 0;
}

Picture parse_picture(Fields& part, const RequestRules& rules, std::vector<RemotePicture>& remote) {
  const Json* image = part.take("image_url");
  if (image == nullptr) part.refuse("image_url", "is missing");
  Fields fields(*image, part.path_of("image_url"));
  const auto url = fields.text("url");
  if (!url) fields.refuse("url", "is missing");
  Picture picture = parse_picture_url(*url, fields.path_of("url"), rules);
  if (is_remote(*url)) remote.push_back({.url = *url, .path = picture.name});
  take_pixel_limits(fields, picture);
  const std::string detail = fields.text("detail").value_or("auto");
  if (detail != "low" && detail != "high" && detail != "auto") {
    fields.refuse("detail", "must be low, high or auto");
  }
  if (detail == "low") {
    if (picture.max_pixels > 0) fields.refuse("detail", "low and max_pixels exclude each other");
    picture.max_pixels =
        rules.max_pixels > 0 ? std::min(kLowDetailPixels, rules.max_pixels) : kLowDetailPixels;
  }
  if (picture.min_pixels > 0 && picture.max_pixels > 0 && picture.min_pixels > picture.max_pixels) {
    fields.refuse("min_pixels", fmt::format("is {}, more than the picture's max_pixels of {}",
                                            picture.min_pixels, picture.max_pixels));
  }
  fields.refuse_rest();
  return picture;
}

Part parse_part(const Json& json, const std::string& path, const std::string& role,
                const RequestRules& rules, std::vector<RemotePicture>& remote) {
  Fields fields(json, path);
  const std::string type = fields.text("type").value_or("");
  Part part;
  if (type == "text") {
    const auto text = fields.text("text");
    if (!text) fields.refuse("text", "is missing");
    part.text = *text;
  } else if (type == "image_url") {
    if (role != "user" && role != "tool") {
      fields.refuse("type",
                    fmt::format("is image_url, which a message of role {} cannot have", role));
    }
    part.picture = parse_picture(fields, rules, remote);
  } else {
    fields.refuse("type", "must be text or image_url");
  }
  fields.refuse_rest();
  return part;
}

std::vector<Part> parse_content(const Json& content, const std::string& path,
                                const std::string& role, const RequestRules& rules,
                                std::vector<RemotePicture>& remote) {
  if (content.is_string()) return {Part::of_text(content.get<std::string>())};
  if (!content.is_array()) {
    throw RequestError(400, path + " must be a string or an array of parts", path);
  }
  std::vector<Part> parts;
  for (size_t i = 0; i < content.size(); ++i) {
    const size_t known = remote.size();
    parts.push_back(parse_part(content[i], fmt::format("{}[{}]", path, i), role, rules, remote));
    if (remote.size() > known) remote.back().part = i;
  }
  return parts;
}

std::string parse_tool_calls(const Json& calls, const std::string& path) {
  if (!calls.is_array()) throw RequestError(400, path + " must be an array", path);
  for (size_t i = 0; i < calls.size(); ++i) {
    Fields call(calls[i], fmt::format("{}[{}]", path, i));
    (void)call.text("id");
    call.only("type", "function");
    const Json* function = call.take("function");
    if (function == nullptr) call.refuse("function", "is missing");
    Fields fields(*function, call.path_of("function"));
    if (!fields.text("name")) fields.refuse("name", "is missing");
    if (!fields.text("arguments")) fields.refuse("arguments", "is missing");
    fields.refuse_rest();
    call.refuse_rest();
  }
  return calls.empty() ? std::string() : calls.dump();
}

Message parse_message(const Json& json, const std::string& path, const RequestRules& rules,
                      std::vector<RemotePicture>& remote) {
  Fields fields(json, path);
  Message message;
  message.role = fields.text("role").value_or("");
  if (message.role == "developer") message.role = "system";  // OpenAI's newer name of it
  if (message.role != "system" && message.role != "user" && message.role != "assistant" &&
      message.role != "tool") {
    fields.refuse("role", "must be system, developer, user, assistant or tool");
  }
  if (message.role == "assistant") {
    if (const auto text = fields.text("reasoning_content")) message.reasoning_content = *text;
    if (const Json* calls = fields.take("tool_calls")) {
      message.tool_calls_json = parse_tool_calls(*calls, fields.path_of("tool_calls"));
    }
  }
  if (message.role == "tool") {
    if (const auto id = fields.text("tool_call_id")) message.tool_call_id = *id;
  }
  const Json* content = fields.take("content");
  if (content != nullptr) {
    message.parts = parse_content(*content, fields.path_of("content"), message.role, rules, remote);
  } else if (message.tool_calls_json.empty()) {
    fields.refuse("content", "is missing");
  }
  fields.refuse_rest();
  return message;
}

}  // namespace

Picture parse_picture_url(const std::string& url, const std::string& path,
                          const RequestRules& rules) {
  if (is_data_url(url)) {
    try {
      return {.bytes = decode_data_url(url, {.max_bytes = rules.max_picture_bytes}), .name = path};
    } catch (const Error& error) {
      throw RequestError(400, fmt::format("{}: {}", path, error.what()), path, error.hint());
    }
  }
  if (url.rfind("file://", 0) == 0) return picture_of_file(url, path, rules);
  if (is_remote(url) && rules.fetches) return {.name = path};
  if (is_remote(url)) {
    throw RequestError(400, path + " is a remote URL, which this server does not fetch", path,
                       "send the picture as a data URL, or start the server with "
                       "--allow-picture-host");
  }
  throw RequestError(400, path + " is not a data URL", path,
                     "send the picture as data:image/png;base64, and its base64");
}

std::vector<Message> parse_messages(const Json& json, const RequestRules& rules,
                                    std::vector<RemotePicture>& remote) {
  const std::string name = "messages";
  if (!json.is_array() || json.empty()) {
    throw RequestError(400, "messages must be an array with at least one message", name);
  }
  std::vector<Message> messages;
  bool has_system = false;
  int num_pictures = 0;
  for (size_t i = 0; i < json.size(); ++i) {
    const std::string path = fmt::format("{}[{}]", name, i);
    const size_t known = remote.size();
    messages.push_back(parse_message(json[i], path, rules, remote));
    for (size_t r = known; r < remote.size(); ++r) remote[r].message = i;
    has_system |= messages.back().role == "system";
    for (const Part& part : messages.back().parts) num_pictures += part.picture ? 1 : 0;
    if (num_pictures > rules.max_pictures) {
      throw RequestError(
          400, fmt::format("messages have more than {} pictures", rules.max_pictures), path);
    }
  }
  if (!has_system && !rules.system.empty()) {
    messages.insert(messages.begin(),
                    Message{.role = "system", .parts = {Part::of_text(rules.system)}});
    for (RemotePicture& picture : remote) ++picture.message;
  }
  return messages;
}

}  // namespace glimpse
