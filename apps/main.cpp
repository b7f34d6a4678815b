// The program: one subcommand per file, each only flags around the library.
#include <cstdio>
#include <exception>
#include <new>

#include "command.h"

namespace {

constexpr const char* kFooter =
    "Exit codes: 0 done, 1 internal defect, 2 bad flag or value, 3 not found, 4 bad picture,\n"
    "5 bad or unsupported model, 6 prompt longer than the context, 7 out of memory,\n"
    "8 device failure, 9 the device hangs, 10 standard output cannot be written, 130 interrupted.";

int run(int argc, char** argv) {
  CLI::App program("Glimpse: describe pictures with Qwen3-VL models on the GPU you have.",
                   "glimpse");
  program.set_version_flag("--version", GLIMPSE_VERSION);
  program.require_subcommand(1);
  program.footer(kFooter);
  int result = 0;
  glimpse::add_caption_command(program, result);
  glimpse::add_chat_command(program, result);
  glimpse::add_bench_command(program, result);
  glimpse::add_synth_command(program, result);
  glimpse::add_serve_command(program, result);
  glimpse::add_plan_command(program, result);
  glimpse::add_doctor_command(program, result);
  glimpse::add_ask_command(program, result);
  try {
    program.parse(argc, argv);
    glimpse::flush_output();
  } catch (const CLI::ParseError& error) {
    return glimpse::report_flags(program, error);
  } catch (const glimpse::OutputError&) {
    return glimpse::report_output_error();
  } catch (const glimpse::Error& error) {
    glimpse::report(error);
    return glimpse::exit_code(error.code());
  } catch (const std::bad_alloc&) {
    std::fputs("glimpse: out of memory\n", stderr);
    return glimpse::exit_code(glimpse::ErrorCode::out_of_memory);
  } catch (const std::exception& error) {
    if (std::ferror(stdout) != 0) return glimpse::report_output_error();
    std::fprintf(stderr, "glimpse: %s\n", error.what());
    return 1;
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  glimpse::open_standard_streams();
  return run(argc, argv);
}
