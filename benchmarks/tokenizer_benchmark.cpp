// How long Qwen's tokenizer takes to load and to encode prose. Usage: tokenizer_benchmark [flags of
// Google Benchmark]; reads ../shared/golden/tokenizer/tokenizer.json or the file that
// GLIMPSE_TOKENIZER names.
#include <cstdlib>
#include <filesystem>
#include <string>

#include <benchmark/benchmark.h>

#include "text/tokenizer.h"

namespace glimpse {
namespace {

std::filesystem::path tokenizer_path() {
  const char* named = std::getenv("GLIMPSE_TOKENIZER");
  return named != nullptr ? named : "../shared/golden/tokenizer/tokenizer.json";
}

void load(benchmark::State& state) {
  if (!std::filesystem::exists(tokenizer_path())) {
    state.SkipWithError("no tokenizer.json: set GLIMPSE_TOKENIZER");
    return;
  }
  for (auto _ : state) {
    const Tokenizer tokenizer(tokenizer_path());
    benchmark::DoNotOptimize(tokenizer.vocabulary_size());
  }
}
BENCHMARK(load)->Unit(benchmark::kMillisecond);

void encode_prose(benchmark::State& state) {
  if (!std::filesystem::exists(tokenizer_path())) {
    state.SkipWithError("no tokenizer.json: set GLIMPSE_TOKENIZER");
    return;
  }
  const Tokenizer tokenizer(tokenizer_path());
  std::string text;
  while (text.size() < 100'000) {
    text += "The picture shows two small houses near a river; 17 people don't cross the bridge.\n";
  }
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer.encode(text));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}
BENCHMARK(encode_prose)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace glimpse

BENCHMARK_MAIN();
