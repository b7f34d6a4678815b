// What every subcommand shares: the table of common flags, reporting, and exit codes.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "base/json.h"
#include "glimpse/engine.h"

namespace glimpse {

/// Sequences that commands for many answers compute together, unless told otherwise.
inline constexpr int kDefaultSequences = 8;

/// No --min-pixels or --max-pixels is larger.
inline constexpr int64_t kMostPixels = int64_t{1} << 40;

/// The common flags, filled by the parser.
struct CommonFlags {
  EngineOptions engine;
  SamplingOptions sampling;
  std::string system;  ///< system message; empty: none
  bool stats = false;
  bool json = false;
  bool quiet = false;
};

/// Adds the one table of common flags to a subcommand. `flags` must outlive the parse.
void add_common_flags(CLI::App& command, CommonFlags& flags);

/// Words on standard error. Never throws: where nobody can read, there is nobody to tell.
template <typename... Values>
void say(fmt::format_string<Values...> format, Values&&... values) {
  const std::string text = fmt::format(format, std::forward<Values>(values)...);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

/// A check of a numeric flag that says the value and both limits.
template <typename T>
CLI::Validator between(T least, T most) {
  return {[least, most](const std::string& text) -> std::string {
            T value{};
            const char* end = text.data() + text.size();
            const auto [rest, error] = std::from_chars(text.data(), end, value);
            if (error == std::errc() && rest == end && value >= least && value <= most) return {};
            return fmt::format("'{}' is not between {} and {}", text, least, most);
          },
          fmt::format("{} to {}", least, most)};
}

/// Turns "6.5GiB" into a number of bytes; units are powers of two.
CLI::Validator size_in_bytes();

/// Parts of the same table, for commands without an engine.
void add_memory_flags(CLI::App& command, EngineOptions& engine);
void add_sampling_flags(CLI::App& command, SamplingOptions& sampling);
void add_output_flags(CLI::App& command, CommonFlags& flags);

/// Loads the engine with a progress bar and notices on standard error (unless --quiet).
std::unique_ptr<Engine> load_engine(CommonFlags& flags);

/// Standard output takes nothing more: a full disk, a closed descriptor.
class OutputError : public std::exception {
 public:
  [[nodiscard]] const char* what() const noexcept override { return "cannot write the output"; }
};
inline constexpr int kOutputExitCode = 10;

/// Hands what was printed to whoever reads it. Throws OutputError.
void flush_output();
/// Says that and why standard output failed; the exit code.
[[nodiscard]] int report_output_error();
/// Standard streams that the caller closed become /dev/null, so that no file takes their numbers.
void open_standard_streams();

/// The process's exit code for each kind of error; --help lists them.
[[nodiscard]] int exit_code(ErrorCode code);
/// "glimpse: <message>" and, indented, the hint, on standard error.
void report(const Error& error);

/// A mistake on the command line, as an Error would be reported; help and version are printed.
/// Returns the process's exit code.
[[nodiscard]] int report_flags(const CLI::App& program, const CLI::ParseError& error);

/// The --stats table on standard error.
void print_stats(const Engine& engine, const Usage& usage, const Timings& timings);
/// The same as a JSON object.
[[nodiscard]] Json stats_json(const Engine& engine, const Usage& usage, const Timings& timings);
/// One answer as a JSON object: text, tokens, finish reason and, when asked for, log-probabilities.
[[nodiscard]] Json answer_json(const Answer& answer);
/// One line of JSON on standard output; invalid UTF-8 (file names) becomes U+FFFD.
void print_json_line(const Json& value);
/// "stop", "length", ...
[[nodiscard]] std::string name_of(FinishReason reason);

/// From now on the first Ctrl-C only sets interrupted(); a second one ends the program.
void catch_interrupts();
[[nodiscard]] bool interrupted();
void clear_interrupt();

// One function per file: registers the subcommand with its flags and its action. `result` receives
// the exit code when the action ran.
void add_caption_command(CLI::App& program, int& result);
void add_chat_command(CLI::App& program, int& result);
void add_bench_command(CLI::App& program, int& result);
void add_synth_command(CLI::App& program, int& result);
void add_serve_command(CLI::App& program, int& result);
void add_plan_command(CLI::App& program, int& result);
void add_doctor_command(CLI::App& program, int& result);
void add_ask_command(CLI::App& program, int& result);

}  // namespace glimpse
