// glimpse caption FILE...: the answer on standard output and nothing else. Several files are one
// model load; their pictures are prepared while earlier ones are answered, and the lines come out
// in the order given. A file that fails is reported and the others go on.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <future>

#include <fmt/format.h>

#include "command.h"
#include "picture_inputs.h"

namespace glimpse {
namespace {

struct CaptionCommand {
  CommonFlags flags;
  std::vector<std::string> files;
  std::string prompt = "Describe this image in detail.";
};

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

// One line per answer: a line break inside it, or in a file's name, becomes "\n".
std::string on_one_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    if (c == '\n') {
      line += "\\n";
    } else if (c == '\r') {
      line += "\\r";
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

void print_answer(const CaptionCommand& command, const Engine& engine, const PictureInput& input,
                  const Answer& answer) {
  if (command.flags.json) {
    Json value = {{"path", input.name}};
    value.update(answer_json(answer));
    value["stats"] = stats_json(engine, answer.usage, answer.timings);
    print_json_line(value);
  } else {
    fmt::print("{}\t{}\n", on_one_line(input.name), on_one_line(answer.text));
    flush_output();
  }
  if (command.flags.stats) print_stats(engine, answer.usage, answer.timings);
}

// One picture: the text is printed as it comes.
void stream_one(const CaptionCommand& command, Engine& engine, PictureInput& input) {
  const bool stream = !command.flags.json;
  const Answer answer =
      engine.answer(make_request(command, std::move(input.picture)), [&](const Event& event) {
        if (!stream || event.is_reasoning) return;
        std::fwrite(event.text.data(), 1, event.text.size(), stdout);
        std::fflush(stdout);
      });
  if (!stream) return print_answer(command, engine, input, answer);
  std::fputc('\n', stdout);
  flush_output();
  if (command.flags.stats) print_stats(engine, answer.usage, answer.timings);
}

// Many pictures: a window of requests in flight, answers printed in order.
int caption_all(const CaptionCommand& command, Engine& engine, std::vector<PictureInput>& inputs) {
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
      const std::optional<Error>& fault = inputs[next].fault;
      Request request = make_request(command, std::move(inputs[next].picture));
      flights.push_back(
          {next++, std::async(std::launch::async, [&engine, &fault, request]() mutable {
             if (fault) throw Error(*fault);
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
  std::vector<PictureInput> inputs = find_pictures(command.files);
  if (inputs.size() == 1 && inputs.front().fault) throw Error(*inputs.front().fault);
  EngineOptions& engine_options = command.flags.engine;
  if (engine_options.max_sequences == 0) {
    engine_options.max_sequences =
        static_cast<int>(std::min<size_t>(inputs.size(), kDefaultSequences));
    engine_options.fewer_sequences = true;
  }
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
      "breaks and tabs written as \\n and \\t, or JSON lines with --json.");
  app->add_option("FILE", command->files,
                  "picture files; a directory stands for the pictures in it, - for standard input")
      ->required();
  app->add_option("--prompt", command->prompt,
                  "what to ask (default: \"" + command->prompt + "\")");
  app->add_option("--max-sequences", command->flags.engine.max_sequences,
                  fmt::format("pictures described together (default: {}, fewer on a GPU short of "
                              "memory)",
                              kDefaultSequences))
      ->check(between(1, 1024));
  add_common_flags(*app, command->flags);
  app->callback([command, &result] { result = run(*command); });
}

}  // namespace glimpse
