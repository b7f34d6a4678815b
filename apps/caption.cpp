// glimpse caption FILE...: the answer on standard output and nothing else. Several files are one
// model load; their pictures are prepared while earlier ones are answered, and the lines come out
// in the order given. A file that fails is reported and the others go on.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <future>
#include <iterator>
#include <thread>

#include <fmt/format.h>

#include "command.h"

namespace glimpse {
namespace {

struct CaptionCommand {
  CommonFlags flags;
  std::vector<std::string> files;
  std::string prompt = "Describe this image in detail.";
};

/// A file, or a picture that came through standard input.
struct Input {
  std::string name;
  Picture picture;
};

bool looks_like_picture(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::string_view kExtensions[] = {".jpg", ".jpeg", ".png",  ".webp", ".gif", ".bmp",
                                              ".tif", ".tiff", ".heic", ".heif", ".avif"};
  return std::find(std::begin(kExtensions), std::end(kExtensions), extension) !=
         std::end(kExtensions);
}

std::vector<std::byte> read_standard_input() {
  std::vector<std::byte> bytes;
  std::byte block[1 << 16];
  size_t count = 0;
  while ((count = std::fread(block, 1, sizeof(block), stdin)) > 0) {
    bytes.insert(bytes.end(), block, block + count);
  }
  if (bytes.empty()) {
    throw Error(ErrorCode::bad_picture, "standard input is empty",
                "pipe a picture in: glimpse caption - < picture.png");
  }
  return bytes;
}

// Directories stand for the pictures in them, by name.
std::vector<Input> expand(const std::vector<std::string>& files) {
  std::vector<Input> inputs;
  for (const std::string& file : files) {
    if (file == "-") {
      inputs.push_back({"-", {.bytes = read_standard_input(), .name = "standard input"}});
      continue;
    }
    std::error_code ignored;
    if (!std::filesystem::is_directory(file, ignored)) {
      inputs.push_back({file, {.path = file}});
      continue;
    }
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(file)) {
      if (entry.is_regular_file() && looks_like_picture(entry.path())) {
        found.push_back(entry.path().string());
      }
    }
    if (found.empty()) {
      throw Error(
          ErrorCode::not_found, fmt::format("no pictures in the directory {}", file),
          "name a directory with .jpg, .png, .webp, .gif, .bmp, .tiff, .heic or .avif files");
    }
    std::sort(found.begin(), found.end());
    for (std::string& name : found) {
      Picture picture{.path = name};
      inputs.push_back({std::move(name), std::move(picture)});
    }
  }
  return inputs;
}

Request make_request(const CaptionCommand& command, Picture picture) {
  Request request;
  if (!command.flags.system.empty()) {
    request.messages.push_back({.role = "system", .parts = {Part::of_text(command.flags.system)}});
  }
  request.messages.push_back(
      {.role = "user",
       .parts = {Part::of_picture(std::move(picture)), Part::of_text(command.prompt)}});
  request.sampling = command.flags.sampling;
  return request;
}

// One line per answer: a line break inside it becomes "\n".
std::string on_one_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    if (c == '\n') {
      line += "\\n";
    } else if (c == '\t') {
      line += "\\t";
    } else if (c == '\\') {
      line += "\\\\";
    } else {
      line += c;
    }
  }
  return line;
}

void print_answer(const CaptionCommand& command, const Engine& engine, const Input& input,
                  const Answer& answer) {
  if (command.flags.json) {
    Json value = {{"path", input.name}};
    value.update(answer_json(answer));
    value["stats"] = stats_json(engine, answer.usage, answer.timings);
    print_json_line(value);
  } else {
    fmt::print("{}\t{}\n", input.name, on_one_line(answer.text));
    std::fflush(stdout);
  }
  if (command.flags.stats) print_stats(engine, answer.usage, answer.timings);
}

// One picture: the text is printed as it comes.
void stream_one(const CaptionCommand& command, Engine& engine, Input& input) {
  const bool stream = !command.flags.json;
  const Answer answer =
      engine.answer(make_request(command, std::move(input.picture)), [&](const Event& event) {
        if (!stream || event.is_reasoning) return;
        std::fwrite(event.text.data(), 1, event.text.size(), stdout);
        std::fflush(stdout);
      });
  if (!stream) return print_answer(command, engine, input, answer);
  std::fputc('\n', stdout);
  std::fflush(stdout);
  if (command.flags.stats) print_stats(engine, answer.usage, answer.timings);
}

// Many pictures: a window of requests in flight, answers printed in order.
int caption_all(const CaptionCommand& command, Engine& engine, std::vector<Input>& inputs) {
  struct Flight {
    size_t index;
    std::future<Answer> answer;
  };
  const size_t window = 2 * static_cast<size_t>(std::max(1, engine.model().max_sequences));
  std::deque<Flight> flights;
  size_t next = 0;
  int result = 0;
  while (next < inputs.size() || !flights.empty()) {
    while (next < inputs.size() && flights.size() < window) {
      Request request = make_request(command, std::move(inputs[next].picture));
      flights.push_back({next++, std::async(std::launch::async, [&engine, request]() mutable {
                           return engine.answer(std::move(request));
                         })});
    }
    Flight flight = std::move(flights.front());
    flights.pop_front();
    try {
      print_answer(command, engine, inputs[flight.index], flight.answer.get());
    } catch (const Error& error) {
      report(error);
      if (command.flags.json) {
        print_json_line({{"path", inputs[flight.index].name}, {"error", error.what()}});
      }
      if (result == 0) result = exit_code(error.code());
    }
  }
  return result;
}

int run(CaptionCommand& command) {
  std::vector<Input> inputs = expand(command.files);
  const std::unique_ptr<Engine> engine = load_engine(command.flags);
  if (inputs.size() > 1) return caption_all(command, *engine, inputs);
  stream_one(command, *engine, inputs.front());
  return 0;
}

}  // namespace

void add_caption_command(CLI::App& program, int& result) {
  const auto command = std::make_shared<CaptionCommand>();
  CLI::App* app = program.add_subcommand(
      "caption",
      "Describe pictures. One picture: its text, streamed. Several: 'path<TAB>text' lines, line "
      "breaks written as \\n, or JSON lines with --json.");
  app->add_option("FILE", command->files,
                  "picture files; a directory stands for the pictures in it, - for standard input")
      ->required();
  app->add_option("--prompt", command->prompt,
                  "what to ask (default: \"" + command->prompt + "\")");
  add_common_flags(*app, command->flags);
  app->callback([command, &result] { result = run(*command); });
}

}  // namespace glimpse
