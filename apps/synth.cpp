// glimpse synth DIR: a checkpoint of a real shape with random weights.
#include <unistd.h>

#include <limits>

#include <fmt/format.h>

#include "command.h"
#include "glimpse/synthesize.h"

namespace glimpse {
namespace {

int run(SynthesizeOptions& options, bool quiet) {
  const bool show = !quiet && ::isatty(STDERR_FILENO) == 1;
  if (show) {
    options.on_progress = [](int64_t done, int64_t total) {
      say("\r{} of {} MiB", done >> 20, total >> 20);
    };
  }
  synthesize_checkpoint(options);
  if (show) say("\r\x1b[2K");
  if (!quiet) {
    say("glimpse: wrote a {} checkpoint of the {} shape to {}\n", options.format, options.shape,
        options.directory.string());
  }
  return 0;
}

}  // namespace

void add_synth_command(CLI::App& program, int& result) {
  const auto options = std::make_shared<SynthesizeOptions>();
  const auto quiet = std::make_shared<bool>(false);
  CLI::App* app = program.add_subcommand(
      "synth", "Write a checkpoint of a real shape with seeded random weights, for benchmarks.");
  app->add_option("DIR", options->directory, "directory to write")->required();
  app->add_option("--shape", options->shape, "2b, 4b, 8b or 32b (default: 2b)")
      ->check(CLI::IsMember({"2b", "4b", "8b", "32b"}));
  app->add_option("--format", options->format, "bf16 or fp8 (default: fp8)")
      ->check(CLI::IsMember({"bf16", "fp8"}));
  app->add_option("--tokenizer", options->tokenizer, "a tokenizer.json to put beside the weights")
      ->check(CLI::ExistingFile);
  app->add_option("--seed", options->seed, "equal seeds give equal weights (default: 0)")
      ->check(between(uint64_t{0}, std::numeric_limits<uint64_t>::max()));
  app->add_flag("--sparse", options->is_sparse,
                "zeros that take no room on the disk: for glimpse plan, for nothing else");
  app->add_flag("--quiet", *quiet, "no progress");
  app->callback([options, quiet, &result] { result = run(*options, *quiet); });
}

}  // namespace glimpse
