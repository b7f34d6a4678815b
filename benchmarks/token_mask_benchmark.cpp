// How long a token mask of constrained decoding takes: every state that random answers meet is
// computed anew, as in the first answer of its grammar. Counters: median and 99th percentile in
// microseconds of CPU time over all these masks, and of those that a second answer finds in the
// cache. Usage: token_mask_benchmark [flags of Google Benchmark]; reads
// ../shared/golden/tokenizer/tokenizer.json or the file that GLIMPSE_TOKENIZER names.
#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <random>
#include <string>

#include <benchmark/benchmark.h>

#include "text/grammar_masks.h"
#include "text/json_schema.h"

namespace glimpse {
namespace {

struct Vocabulary {
  Tokenizer tokenizer;
  std::shared_ptr<const TokenIndex> index;
  TokenId stop;
};

std::filesystem::path tokenizer_path() {
  const char* named = std::getenv("GLIMPSE_TOKENIZER");
  return named != nullptr ? named : "../shared/golden/tokenizer/tokenizer.json";
}

const Vocabulary& vocabulary() {
  static const Vocabulary* const shared = [] {
    auto* made = new Vocabulary{Tokenizer(tokenizer_path()), nullptr, 0};  // for the program's life
    made->index = std::make_shared<const TokenIndex>(
        made->tokenizer, (made->tokenizer.vocabulary_size() + 511) / 512 * 512);
    made->stop = made->tokenizer.find("<|im_end|>");
    return made;
  }();
  return *shared;
}

Json person() {
  return Json::parse(R"({"type": "object", "properties": {
    "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "mail": {"type": "string", "minLength": 3, "maxLength": 40},
    "role": {"enum": ["admin", "user", "guest", "größe"]},
    "scores": {"type": "array", "items": {"type": "number"}, "maxItems": 5},
    "address": {"type": "object", "properties": {"street": {"type": "string"},
      "zip": {"type": "string", "maxLength": 10}}, "required": ["street"]}},
    "required": ["name", "age"], "additionalProperties": false})");
}

Json boxes() {
  return Json::parse(R"({"type": "array", "items": {"type": "object", "properties": {
    "label": {"type": "string"}, "bbox_2d": {"type": "array", "items": {"type": "integer",
      "minimum": 0, "maximum": 1000}, "minItems": 4, "maxItems": 4}},
    "required": ["label", "bbox_2d"]}})");
}

Json tree() {
  return Json::parse(
      R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
    "value": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["value", "children"]}}})");
}

/// Every alternative is an object with members of its own, and all of them stay possible at first.
Json alternatives() {
  Json branches = Json::array();
  for (int i = 0; i < 50; ++i) {
    branches.push_back({{"type", "object"},
                        {"properties",
                         {{"text", {{"type", "string"}, {"maxLength", 20 + i}}},
                          {"kind", {{"const", "kind" + std::to_string(i)}}}}},
                        {"required", {"text", "kind"}}});
  }
  return {{"anyOf", branches}};
}

Json many_members() {
  Json schema = {{"type", "object"}, {"properties", Json::object()}};
  for (int i = 0; i < 1000; ++i) {
    schema["properties"]["member_" + std::to_string(i * 7919)] = {{"type", "string"}};
  }
  return schema;
}

Json many_choices() {
  Json schema = {{"enum", Json::array()}};
  std::mt19937 random(1);
  for (int i = 0; i < 5000; ++i) schema["enum"].push_back(std::to_string(random()) + " é");
  return schema;
}

Json patterns() {
  return Json::parse(R"({"type": "object", "properties": {
    "plate": {"type": "string", "pattern": "^[A-Z]{1,3}-[A-Z]{1,2} \\d{1,4}$"},
    "mail": {"type": "string", "pattern": "^[\\w.+-]+@[\\w-]+(\\.[\\w-]+)+$"},
    "title": {"type": "string", "pattern": "^.{1,80}$"},
    "note": {"type": "string", "pattern": "(total|sum): \\d+"},
    "words": {"type": "string", "pattern": "^\\S+( \\S+){0,9}$", "maxLength": 100},
    "when": {"type": "string", "format": "date-time"},
    "contact": {"type": "string", "format": "email"}},
    "required": ["plate", "mail", "title", "note", "words", "when", "contact"]})");
}

/// Unanchored and of many letters, with a wildcard that is not everything: little falls together.
Json hard_patterns() {
  return Json::parse(R"({"type": "object", "properties": {
    "a": {"type": "string", "pattern": "^.*(quick|brown|fox|jumps|over|lazy|dog).*$"},
    "b": {"type": "string", "pattern": "^[^q]*[a-e][f-j][k-o][p-t][u-z][^0-9]*$"}},
    "required": ["a", "b"]})");
}

double percentile(std::vector<double>& values, double share) {
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

// The thread's own time: what others do on the machine does not count.
double microseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

double timed_mask(GrammarMasks& masks, const GrammarPositions& at) {
  const double begin = microseconds();
  benchmark::DoNotOptimize(masks.mask(at));
  return microseconds() - begin;
}

/// A random token, such that one ends what is open from time to time; -1 at the end.
TokenId choose(const GrammarMasks& masks, const TokenMask& mask, std::mt19937& random) {
  std::vector<TokenId> allowed;
  for (size_t word = 0; word < mask.size(); ++word) {
    for (uint32_t bits = mask[word]; bits != 0; bits &= bits - 1) {
      allowed.push_back(static_cast<TokenId>(word * 32 + static_cast<size_t>(__builtin_ctz(bits))));
    }
  }
  if (random() % 3 == 0) {
    for (const char* end : {"\"", "}", "]"}) {
      const TokenId token = vocabulary().tokenizer.find(end);
      if (std::find(allowed.begin(), allowed.end(), token) != allowed.end()) return token;
    }
  }
  const TokenId token = allowed[random() % allowed.size()];
  return masks.is_stop(token) ? -1 : token;
}

void compute_masks(benchmark::State& state, Json (*make_schema)()) {
  if (!std::filesystem::exists(tokenizer_path())) {
    state.SkipWithError("no tokenizer.json: set GLIMPSE_TOKENIZER");
    return;
  }
  constexpr int kMaxTokens = 300;
  const Json schema = make_schema();
  std::mt19937 random(11);
  std::vector<double> computed;
  std::vector<double> found;
  for (auto _ : state) {
    GrammarMasks masks(compile_json_schema(schema), vocabulary().index, {vocabulary().stop});
    std::vector<GrammarPositions> met;
    GrammarPositions at = masks.start();
    for (int i = 0; i < kMaxTokens; ++i) {
      if (std::find(met.begin(), met.end(), at) == met.end()) {
        met.push_back(at);
        computed.push_back(timed_mask(masks, at));
      }
      found.push_back(timed_mask(masks, at));
      const TokenId token = choose(masks, *masks.mask(at), random);
      if (token < 0) break;
      at = masks.after(at, token);
    }
  }
  state.counters["masks"] = static_cast<double>(computed.size());
  state.counters["median_us"] = percentile(computed, 0.5);
  state.counters["p99_us"] = percentile(computed, 0.99);
  state.counters["max_us"] = percentile(computed, 1);
  state.counters["cached_median_us"] = percentile(found, 0.5);
}

Json any_value() {
  return true;
}

BENCHMARK_CAPTURE(compute_masks, person, person)->Iterations(100)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, boxes, boxes)->Iterations(100)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, tree, tree)->Iterations(100)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, any_value, any_value)
    ->Iterations(100)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, patterns, patterns)
    ->Iterations(100)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, hard_patterns, hard_patterns)
    ->Iterations(30)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, 50_alternatives, alternatives)
    ->Iterations(30)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, 1000_members, many_members)
    ->Iterations(30)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compute_masks, 5000_choices, many_choices)
    ->Iterations(30)
    ->Unit(benchmark::kMillisecond);

void build_index(benchmark::State& state) {
  if (!std::filesystem::exists(tokenizer_path())) {
    state.SkipWithError("no tokenizer.json: set GLIMPSE_TOKENIZER");
    return;
  }
  for (auto _ : state) {
    const TokenIndex index(vocabulary().tokenizer, 151'936);
    benchmark::DoNotOptimize(index.mask_words());
  }
}
BENCHMARK(build_index)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace glimpse

BENCHMARK_MAIN();
