// Everything the program says beside its answers: errors, progress, notices, statistics.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include <fmt/format.h>

#include "command.h"

namespace glimpse {
namespace {

volatile std::sig_atomic_t interrupt_count = 0;

void on_interrupt(int) {
  interrupt_count = interrupt_count + 1;
  if (interrupt_count > 1) ::_exit(130);
}

double mebibytes(int64_t bytes) {
  return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

double per_second(int64_t count, double milliseconds) {
  return milliseconds > 0 ? static_cast<double>(count) * 1000.0 / milliseconds : 0;
}

double rounded(double milliseconds) {
  return static_cast<double>(static_cast<int64_t>(milliseconds * 100 + 0.5)) / 100;
}

void draw_progress(const LoadProgress& progress) {
  constexpr int kWidth = 30;
  const double share = progress.total_bytes > 0 ? static_cast<double>(progress.done_bytes) /
                                                      static_cast<double>(progress.total_bytes)
                                                : 1.0;
  const auto filled = static_cast<size_t>(share * kWidth);
  say("\r\x1b[2K{} [{:-<{}}] {:.0f} of {:.0f} MiB", progress.stage, std::string(filled, '#'),
      kWidth, mebibytes(progress.done_bytes), mebibytes(progress.total_bytes));
  std::fflush(stderr);
}

// The answers that say so are still on their way to their readers.
[[noreturn]] void end_stuck_process(const std::string& fault) {
  say("glimpse: {}\n  restart it; `glimpse doctor` tests the card and its driver\n", fault);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  std::_Exit(kStuckExitCode);
}

Json log_prob_json(const TokenLogProb& token) {
  return {{"token", token.token}, {"text", token.bytes}, {"log_prob", token.log_prob}};
}

}  // namespace

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument:
      return 2;
    case ErrorCode::not_found:
      return 3;
    case ErrorCode::bad_picture:
      return 4;
    case ErrorCode::bad_model:
    case ErrorCode::unsupported:
      return 5;
    case ErrorCode::context_exceeded:
      return 6;
    case ErrorCode::out_of_memory:
      return 7;
    case ErrorCode::device:
      return 8;
    case ErrorCode::cancelled:
      return 130;
    case ErrorCode::overloaded:
    case ErrorCode::internal:
      return 1;
  }
  return 1;
}

void report(const Error& error) {
  say("glimpse: {}\n", error.what());
  if (!error.hint().empty()) say("  {}\n", error.hint());
}

void flush_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) throw OutputError();
}

int report_output_error() {
  const int reason = errno;
  say("glimpse: standard output cannot be written{}\n"
      "  its disk may be full, or whoever started this closed it\n",
      reason == 0 ? "" : fmt::format(": {}", std::strerror(reason)));
  return kOutputExitCode;
}

void open_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one. Standard output stays one that refuses to be written.
    static_cast<void>(::open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY));
  }
}

std::unique_ptr<Engine> load_engine(CommonFlags& flags) {
  const bool show_progress = !flags.quiet && ::isatty(STDERR_FILENO) == 1;
  bool drawn = false;
  if (show_progress) {
    flags.engine.on_progress = [&drawn](const LoadProgress& progress) {
      draw_progress(progress);
      drawn = true;
    };
  }
  if (!flags.quiet) {
    flags.engine.on_notice = [](const std::string& text) { say("glimpse: {}\n", text); };
  }
  flags.engine.on_stuck = end_stuck_process;
  auto engine = std::make_unique<Engine>(flags.engine);
  flags.engine.on_progress = nullptr;
  if (drawn) say("\r\x1b[2K");
  return engine;
}

void print_stats(const Engine& engine, const Usage& usage, const Timings& timings) {
  const ModelInfo& model = engine.model();
  const EngineStatus status = engine.status();
  int64_t visual_tokens = 0;
  for (const PictureUsage& picture : usage.pictures) visual_tokens += picture.visual_tokens;
  say("model     {} ({}, {} weights) on {}\n", model.name, model.architecture, model.weight_format,
      model.device);
  say("numbers   {} arithmetic\n", model.arithmetic);
  say("load      {:9.1f} ms\n", model.load_milliseconds);
  say("decode    {:9.1f} ms  picture files\n", timings.picture_decode);
  say("resize    {:9.1f} ms\n", timings.picture_resize);
  for (const PictureUsage& picture : usage.pictures) {
    say("                        {}x{} to {}x{}: {} visual tokens{}\n", picture.original_width,
        picture.original_height, picture.resized_width, picture.resized_height,
        picture.visual_tokens, picture.from_cache ? ", from the cache" : "");
  }
  say("vision    {:9.1f} ms  {} visual tokens\n", timings.vision, visual_tokens);
  const int64_t computed = usage.prompt_tokens - usage.cached_prompt_tokens;
  say("prefill   {:9.1f} ms  {} tokens ({} cached), {:.0f} tok/s\n", timings.prefill,
      usage.prompt_tokens, usage.cached_prompt_tokens, per_second(computed, timings.prefill));
  say("decode    {:9.1f} ms  {} tokens, {:.1f} tok/s\n", timings.decode, usage.completion_tokens,
      per_second(usage.completion_tokens - 1, timings.decode));
  say("first     {:9.1f} ms  to the first token, {:.1f} ms in all\n", timings.first_token,
      timings.total);
  say("memory    {:9.1f} MiB resident, {:.1f} MiB at peak\n", mebibytes(status.resident_bytes),
      mebibytes(status.peak_resident_bytes));
  for (const MemoryItem& item : status.memory) {
    say("          {:9.1f} MiB {}\n", mebibytes(item.bytes), item.name);
  }
}

Json stats_json(const Engine& engine, const Usage& usage, const Timings& timings) {
  const ModelInfo& model = engine.model();
  const EngineStatus status = engine.status();
  Json pictures = Json::array();
  for (const PictureUsage& picture : usage.pictures) {
    pictures.push_back({{"width", picture.original_width},
                        {"height", picture.original_height},
                        {"resized_width", picture.resized_width},
                        {"resized_height", picture.resized_height},
                        {"grid_thw", {picture.grid_t, picture.grid_h, picture.grid_w}},
                        {"visual_tokens", picture.visual_tokens},
                        {"from_cache", picture.from_cache}});
  }
  Json memory = Json::array();
  for (const MemoryItem& item : status.memory) {
    memory.push_back({{"name", item.name}, {"bytes", item.bytes}});
  }
  return {{"model", model.name},
          {"device", model.device},
          {"arithmetic", model.arithmetic},
          {"load_ms", rounded(model.load_milliseconds)},
          {"picture_decode_ms", rounded(timings.picture_decode)},
          {"resize_ms", rounded(timings.picture_resize)},
          {"vision_ms", rounded(timings.vision)},
          {"prefill_ms", rounded(timings.prefill)},
          {"decode_ms", rounded(timings.decode)},
          {"first_token_ms", rounded(timings.first_token)},
          {"total_ms", rounded(timings.total)},
          {"prompt_tokens", usage.prompt_tokens},
          {"cached_prompt_tokens", usage.cached_prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"reasoning_tokens", usage.reasoning_tokens},
          {"pictures", pictures},
          {"resident_bytes", status.resident_bytes},
          {"peak_resident_bytes", status.peak_resident_bytes},
          {"memory", memory}};
}

Json answer_json(const Answer& answer) {
  Json value = {{"text", answer.text}, {"finish_reason", name_of(answer.finish_reason)}};
  if (!answer.reasoning.empty()) value["reasoning"] = answer.reasoning;
  value["tokens"] = answer.tokens;
  if (!answer.logprobs.empty()) {
    Json& list = value["logprobs"] = Json::array();
    for (const TokenLogProbs& token : answer.logprobs) {
      Json entry = log_prob_json(token.chosen);
      entry["top"] = Json::array();
      for (const TokenLogProb& top : token.top) entry["top"].push_back(log_prob_json(top));
      list.push_back(std::move(entry));
    }
  }
  return value;
}

void print_json_line(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
  std::fwrite(text.data(), 1, text.size(), stdout);
  flush_output();
}

std::string name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::loop:
      return "loop";
    case FinishReason::tool_calls:
      return "tool_calls";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return "error";
}

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  ::sigaction(SIGINT, &action, nullptr);
}

bool interrupted() {
  return interrupt_count > 0;
}

void clear_interrupt() {
  interrupt_count = 0;
}

}  // namespace glimpse
