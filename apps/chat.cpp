// glimpse chat: a conversation in the terminal. Ctrl-C ends the answer, not the program.
#include <histedit.h>
#include <unistd.h>

#include <cstdio>
#include <future>
#include <iostream>

#include <fmt/format.h>

#include "command.h"

namespace glimpse {
namespace {

constexpr const char* kHelp =
    "  /image PATH   show the model a picture with your next message\n"
    "  /system TEXT  set the system message (starts over)\n"
    "  /clear        start over\n"
    "  /stats        times, tokens and memory of the last answer\n"
    "  /help         this list\n"
    "  /quit         leave (or Ctrl-D)\n";

// Lines from the terminal with editing and history (libedit), or plain lines from a pipe.
class LineReader {
 public:
  LineReader() {
    if (::isatty(STDIN_FILENO) != 1) return;
    history_ = ::history_init();
    HistEvent event;
    ::history(history_, &event, H_SETSIZE, 1000);
    editor_ = ::el_init("glimpse", stdin, stderr, stderr);
    ::el_set(
        editor_, EL_PROMPT, +[](EditLine*) -> char* {
          static char prompt[] = "> ";
          return prompt;
        });
    ::el_set(editor_, EL_EDITOR, "emacs");
    ::el_set(editor_, EL_HIST, ::history, history_);
    ::el_set(editor_, EL_SIGNAL, 0);
  }
  ~LineReader() {
    if (editor_ != nullptr) ::el_end(editor_);
    if (history_ != nullptr) ::history_end(history_);
  }
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  [[nodiscard]] bool is_terminal() const { return editor_ != nullptr; }

  /// False at the end of input.
  bool read(std::string& line) {
    if (editor_ == nullptr) return static_cast<bool>(std::getline(std::cin, line));
    int count = 0;
    const char* text = ::el_gets(editor_, &count);
    if (text == nullptr || count <= 0) {
      if (!interrupted()) return false;  // Ctrl-D
      clear_interrupt();                 // Ctrl-C at the prompt: a fresh line
      std::fputc('\n', stderr);
      line.clear();
      return true;
    }
    line.assign(text, static_cast<size_t>(count));
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
    if (!line.empty()) {
      HistEvent event;
      ::history(history_, &event, H_ENTER, line.c_str());
    }
    return true;
  }

 private:
  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
};

class Chat {
 public:
  Chat(Engine& engine, const CommonFlags& flags) : engine_(engine), flags_(flags) {
    start_over(flags.system);
  }

  /// False when the user wants to leave.
  bool handle(const std::string& line) {
    const std::string word = line.substr(0, line.find(' '));
    const std::string rest =
        word.size() < line.size() ? line.substr(line.find_first_not_of(' ', word.size())) : "";
    if (word == "/quit" || word == "/exit") return false;
    if (word == "/help") {
      std::fputs(kHelp, stderr);
    } else if (word == "/clear") {
      start_over(system_);
    } else if (word == "/system") {
      start_over(rest);
    } else if (word == "/stats") {
      print_stats(engine_, last_.usage, last_.timings);
    } else if (word == "/image") {
      add_picture(rest);
    } else if (!word.empty() && word[0] == '/') {
      say("glimpse: there is no command {}\n{}", word, kHelp);
    } else if (!line.empty()) {
      ask(line);
    }
    return true;
  }

 private:
  void start_over(std::string system) {
    system_ = std::move(system);
    messages_.clear();
    pending_.clear();
    if (!system_.empty()) {
      messages_.push_back({.role = "system", .parts = {Part::of_text(system_)}});
    }
  }

  void add_picture(const std::string& path) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) {
      return report(Error(ErrorCode::not_found, fmt::format("there is no file '{}'", path),
                          "/image PATH names a picture file"));
    }
    pending_.push_back(Part::of_picture({.path = path}));
    if (!flags_.quiet) say("glimpse: {} goes with your next message\n", path);
  }

  void ask(const std::string& question) {
    Message message{.role = "user", .parts = pending_};
    message.parts.push_back(Part::of_text(question));
    messages_.push_back(message);
    Request request;
    request.messages = messages_;
    request.sampling = flags_.sampling;
    try {
      last_ = wait_for_answer(std::move(request));
      pending_.clear();
      messages_.push_back({.role = "assistant",
                           .parts = {Part::of_text(last_.text)},
                           .reasoning_content = last_.reasoning});
      if (flags_.stats) print_stats(engine_, last_.usage, last_.timings);
    } catch (const Error& error) {
      report(error);
      messages_.pop_back();  // the question can be asked again; its pictures are dropped
      pending_.clear();
    }
  }

  // Streams the answer; Ctrl-C cancels it and keeps what has come.
  Answer wait_for_answer(Request request) {
    Answer answer;
    std::promise<void> done;
    clear_interrupt();
    const RequestId id = engine_.submit(std::move(request), [&](const Event& event) {
      answer.finish_reason = event.finish_reason;
      (event.is_reasoning ? answer.reasoning : answer.text) += event.text;
      if (!flags_.json) std::fwrite(event.text.data(), 1, event.text.size(), stdout);
      std::fflush(stdout);
      if (event.kind == Event::Kind::text) return;
      answer.usage = event.usage;
      answer.timings = event.timings;
      if (event.error && event.error->code() != ErrorCode::cancelled) {
        done.set_exception(std::make_exception_ptr(*event.error));
      } else {
        done.set_value();
      }
    });
    std::future<void> finished = done.get_future();
    bool cancelled = false;
    while (finished.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) {
      if (interrupted() && !cancelled) {
        engine_.cancel(id);
        cancelled = true;
      }
    }
    clear_interrupt();
    finished.get();
    if (flags_.json) {
      print_json_line(answer_json(answer));
    } else {
      fmt::print("{}\n", cancelled ? " [stopped]" : "");
      flush_output();
    }
    return answer;
  }

  Engine& engine_;
  const CommonFlags& flags_;
  std::string system_;
  std::vector<Message> messages_;
  std::vector<Part> pending_;  // pictures waiting for the next message
  Answer last_;
};

int run(CommonFlags& flags) {
  const std::unique_ptr<Engine> engine = load_engine(flags);
  catch_interrupts();
  LineReader lines;
  Chat chat(*engine, flags);
  if (lines.is_terminal() && !flags.quiet) {
    say("{} on {}. /help lists the commands.\n", engine->model().name, engine->model().device);
  }
  std::string line;
  while (lines.read(line) && chat.handle(line)) {
  }
  return 0;
}

}  // namespace

void add_chat_command(CLI::App& program, int& result) {
  const auto flags = std::make_shared<CommonFlags>();
  flags->sampling.max_tokens = 1024;
  CLI::App* app = program.add_subcommand(
      "chat",
      "Talk about pictures in the terminal: /image PATH, /clear, /help; Ctrl-C stops an "
      "answer.");
  add_common_flags(*app, *flags);
  app->callback([flags, &result] { result = run(*flags); });
}

}  // namespace glimpse
