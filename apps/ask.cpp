// glimpse ask PICTURE... "question": the client of glimpse serve. The answer is streamed to
// standard output as caption streams it; the model stays loaded on the server.
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include <fmt/format.h>

#include "base/data_url.h"
#include "command.h"
#include "picture_inputs.h"
#include "server/http_client.h"

namespace glimpse {
namespace {

struct AskCommand {
  CommonFlags flags;
  std::vector<std::string> words;  // pictures, and the question last
  std::string url = "http://127.0.0.1:8000";
  std::string model;
  std::filesystem::path api_key_file;
  int64_t min_pixels = 0;
  int64_t max_pixels = 0;
};

/// What the server said, put together again.
struct ServerAnswer {
  std::string text;
  std::string reasoning;
  Json last = Json::object();  // finish_reason, model, usage, timings
  Json logprobs = Json::array();
};

std::string read_api_key(const AskCommand& command) {
  if (command.api_key_file.empty()) {
    const char* key = std::getenv("GLIMPSE_API_KEY");
    return key == nullptr ? "" : key;
  }
  std::ifstream file(command.api_key_file);
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (!line.empty() && line.front() != '#') return line;
  }
  throw Error(ErrorCode::not_found,
              fmt::format("{} has no key or cannot be read", command.api_key_file.string()),
              "--api-key-file names a file whose first line is the key");
}

Json picture_part(const AskCommand& command, const PictureInput& input) {
  std::vector<std::byte> bytes = input.picture.bytes;
  if (bytes.empty()) {
    std::ifstream file(input.picture.path, std::ios::binary | std::ios::ate);
    if (file && file.tellg() > 0) {
      bytes.resize(static_cast<size_t>(file.tellg()));
      file.seekg(0);
      file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
    if (!file || bytes.empty()) {
      throw Error(ErrorCode::not_found, fmt::format("{} is empty or cannot be read", input.name),
                  "check the path of the picture");
    }
  }
  Json image = {{"url", encode_data_url(bytes)}};
  if (command.min_pixels > 0) image["min_pixels"] = command.min_pixels;
  if (command.max_pixels > 0) image["max_pixels"] = command.max_pixels;
  return {{"type", "image_url"}, {"image_url", std::move(image)}};
}

// The question is the last word; a lone picture was meant to have one.
Json messages_of(const AskCommand& command) {
  std::error_code ignored;
  const std::string& question = command.words.back();
  if (std::filesystem::exists(question, ignored)) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the question is missing after {}", question),
                "glimpse ask picture.png \"What is this?\"");
  }
  Json content = Json::array();
  const std::vector<std::string> files(command.words.begin(), command.words.end() - 1);
  for (const PictureInput& input : find_pictures(files)) {
    if (input.fault) throw Error(*input.fault);
    content.push_back(picture_part(command, input));
  }
  content.push_back({{"type", "text"}, {"text", question}});
  Json messages = Json::array();
  if (!command.flags.system.empty()) {
    messages.push_back({{"role", "system"}, {"content", command.flags.system}});
  }
  messages.push_back({{"role", "user"}, {"content", std::move(content)}});
  return messages;
}

// Only what was asked for: the rest is the server's to choose.
Json body_of(const AskCommand& command) {
  const SamplingOptions& sampling = command.flags.sampling;
  Json body = {{"messages", messages_of(command)},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}},
               {"max_tokens", sampling.max_tokens}};
  const auto put = [&body](const char* name, const auto& value) {
    if (value) body[name] = *value;
  };
  if (!command.model.empty()) body["model"] = command.model;
  put("temperature", sampling.temperature);
  put("top_k", sampling.top_k);
  put("top_p", sampling.top_p);
  put("min_p", sampling.min_p);
  put("repetition_penalty", sampling.repetition_penalty);
  put("seed", sampling.seed);
  if (sampling.presence_penalty != 0) body["presence_penalty"] = sampling.presence_penalty;
  if (sampling.frequency_penalty != 0) body["frequency_penalty"] = sampling.frequency_penalty;
  if (!sampling.stop.empty()) body["stop"] = sampling.stop;
  if (sampling.ignore_eos) body["ignore_eos"] = true;
  if (!sampling.loop_guard) body["loop_guard"] = false;
  if (sampling.thinking_budget >= 0) body["thinking_budget"] = sampling.thinking_budget;
  if (sampling.logprobs >= 0) {
    body["logprobs"] = true;
    body["top_logprobs"] = sampling.logprobs;
  }
  return body;
}

// The server's words under the exit code that the same mistake has without a server.
Error error_of(int status, const std::string& body) {
  const Json parsed = Json::parse(body, nullptr, false);
  std::string message = fmt::format("the server answered {}", status);
  if (parsed.is_object() && parsed.contains("error") && parsed["error"].is_object()) {
    message = parsed["error"].value("message", message);
  }
  const ErrorCode code = status == 422                   ? ErrorCode::bad_picture
                         : status == 404                 ? ErrorCode::not_found
                         : status == 429                 ? ErrorCode::overloaded
                         : status == 503                 ? ErrorCode::device
                         : status >= 400 && status < 500 ? ErrorCode::invalid_argument
                                                         : ErrorCode::internal;
  return {code, message,
          status == 401 ? "give the key with --api-key-file or GLIMPSE_API_KEY" : ""};
}

// Server-sent events out of pieces of a stream.
class AnswerReader {
 public:
  explicit AnswerReader(bool prints) : prints_(prints) {}

  void take(const HttpReply& head, std::string_view piece) {
    pending_ += piece;
    if (head.status != 200) return;  // one JSON object, at the end
    for (size_t end = 0; (end = pending_.find("\n\n")) != std::string::npos;) {
      take_event(std::string_view(pending_).substr(0, end));
      pending_.erase(0, end + 2);
    }
  }
  ServerAnswer finish(const HttpReply& head) {
    if (head.status != 200) throw error_of(head.status, pending_);
    if (!is_done_) {
      throw Error(ErrorCode::device, "the server ended the connection before the answer's end",
                  "look at the server's own messages");
    }
    return std::move(answer_);
  }

 private:
  void take_event(std::string_view event) {
    constexpr std::string_view kData = "data: ";
    if (event.substr(0, kData.size()) != kData) return;
    event.remove_prefix(kData.size());
    if (event == "[DONE]") {
      is_done_ = true;
      return;
    }
    const Json json = Json::parse(event, nullptr, false);
    if (json.is_discarded()) {
      throw Error(ErrorCode::internal, "the server sent an event that is no JSON",
                  "--url must name a server of OpenAI's API");
    }
    if (json.contains("error")) throw error_of(500, std::string(event));
    for (const char* name : {"model", "usage", "timings"}) {
      if (json.contains(name)) answer_.last[name] = json[name];
    }
    for (const Json& choice : json.value("choices", Json::array())) take_choice(choice);
  }
  void take_choice(const Json& choice) {
    if (choice.contains("finish_reason") && choice["finish_reason"].is_string()) {
      answer_.last["finish_reason"] = choice["finish_reason"];
    }
    if (choice.contains("logprobs") && choice["logprobs"].is_object()) {
      for (const Json& token : choice["logprobs"].value("content", Json::array())) {
        answer_.logprobs.push_back(token);
      }
    }
    const Json delta = choice.value("delta", Json::object());
    if (delta.contains("reasoning_content")) {
      answer_.reasoning += delta["reasoning_content"].get<std::string>();
    }
    if (!delta.contains("content") || !delta["content"].is_string()) return;
    const auto& text = delta["content"].get_ref<const std::string&>();
    answer_.text += text;
    if (!prints_) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  bool prints_;
  bool is_done_ = false;
  std::string pending_;
  ServerAnswer answer_;
};

void print_server_stats(const ServerAnswer& answer) {
  const Json usage = answer.last.value("usage", Json::object());
  const Json timings = answer.last.value("timings", Json::object());
  say("model     {}\n", answer.last.value("model", "?"));
  for (const Json& picture : usage.value("pictures", Json::array())) {
    say("picture   {}x{} to {}x{}: {} visual tokens{}\n", picture.value("width", 0),
        picture.value("height", 0), picture.value("resized_width", 0),
        picture.value("resized_height", 0), picture.value("visual_tokens", 0),
        picture.value("from_cache", false) ? ", from the cache" : "");
  }
  say("tokens    {} of prompt, {} of answer\n", usage.value("prompt_tokens", 0),
      usage.value("completion_tokens", 0));
  for (const auto& [name, value] : timings.items()) {
    if (value.is_number()) say("{:18} {:9.1f}\n", name, value.get<double>());
  }
}

int run(const AskCommand& command) {
  HttpUrl url = parse_http_url(command.url);
  while (!url.target.empty() && url.target.back() == '/') url.target.pop_back();
  if (url.target.size() >= 3 && url.target.substr(url.target.size() - 3) == "/v1") {
    url.target.resize(url.target.size() - 3);  // as OpenAI's clients have it in base_url
  }
  url.target += "/v1/chat/completions";
  HttpCall call{.method = "POST", .headers = {{"Content-Type", "application/json"}}};
  if (const std::string key = read_api_key(command); !key.empty()) {
    call.headers.emplace_back("Authorization", "Bearer " + key);
  }
  call.body = body_of(command).dump(-1, ' ', false, Json::error_handler_t::replace);

  AnswerReader reader(!command.flags.json);
  HttpReply head;
  try {
    head = make_http_call(url, call, [&](const HttpReply& reply, std::string_view piece) {
      reader.take(reply, piece);
    });
  } catch (const Error& error) {
    if (error.code() != ErrorCode::not_found) throw;
    throw Error(ErrorCode::not_found, error.what(),
                "start one with 'glimpse serve'; --url names it");
  }
  const ServerAnswer answer = reader.finish(head);
  if (command.flags.json) {
    Json value = {{"text", answer.text}};
    if (!answer.reasoning.empty()) value["reasoning"] = answer.reasoning;
    if (!answer.logprobs.empty()) value["logprobs"] = answer.logprobs;
    value.update(answer.last);
    print_json_line(value);
  } else {
    std::fputc('\n', stdout);
    flush_output();
  }
  if (command.flags.stats) print_server_stats(answer);
  return 0;
}

}  // namespace

void add_ask_command(CLI::App& program, int& result) {
  const auto command = std::make_shared<AskCommand>();
  CLI::App* app = program.add_subcommand(
      "ask",
      "Ask a server that runs (glimpse serve) about pictures; the answer is streamed. All pictures "
      "are one question. What is not said is the server's to choose.");
  app->add_option("WORDS", command->words,
                  "pictures (files, directories, - for standard input), then the question")
      ->required();
  const std::string group = "Server";
  app->add_option("--url", command->url, "where it listens (default: " + command->url + ")")
      ->group(group);
  app->add_option("--model", command->model, "the model's name there (default: the one it has)")
      ->group(group);
  app->add_option("--api-key-file", command->api_key_file,
                  "file with the key (default: the variable GLIMPSE_API_KEY)")
      ->group(group);
  app->add_option("--min-pixels", command->min_pixels, "smallest area a picture is scaled to")
      ->check(between(int64_t{1}, kMostPixels))
      ->group(group);
  app->add_option("--max-pixels", command->max_pixels, "largest area a picture is scaled to")
      ->check(between(int64_t{1}, kMostPixels))
      ->group(group);
  add_sampling_flags(*app, command->flags.sampling);
  add_output_flags(*app, command->flags);
  app->callback([command, &result] { result = run(*command); });
}

}  // namespace glimpse
