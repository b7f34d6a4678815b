#include "runtime/request_rules.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "glimpse/error.h"

namespace glimpse {
namespace {

template <typename T>
void check_range(std::string_view name, T value, T least, T most) {
  // Written so that NaN fails.
  if (value >= least && value <= most) return;
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{} is {}, it must be {} to {}", name, value, least, most),
              fmt::format("choose a {} in that range", name));
}

template <typename T>
void check_range(std::string_view name, const std::optional<T>& value, T least, T most) {
  if (value) check_range(name, *value, least, most);
}

void check_not_negative(std::string_view name, int64_t value) {
  if (value >= 0) return;
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{} is {}, it cannot be negative", name, value),
              "leave it out to have it chosen");
}

constexpr float kSmallest = 1e-6F;  // for values that must be above 0
constexpr size_t kMaxStops = 64;

}  // namespace

void check_sampling(const SamplingOptions& options) {
  check_range("temperature", options.temperature, 0.0F, 100.0F);
  check_range("top_k", options.top_k, 0, 1 << 30);
  check_range("top_p", options.top_p, kSmallest, 1.0F);
  check_range("min_p", options.min_p, 0.0F, 1.0F);
  check_range("repetition_penalty", options.repetition_penalty, kSmallest, 10.0F);
  check_range("presence_penalty", options.presence_penalty, -2.0F, 2.0F);
  check_range("frequency_penalty", options.frequency_penalty, -2.0F, 2.0F);
  check_range("max_tokens", options.max_tokens, 1, 1 << 30);
  check_range("logprobs", options.logprobs, -1, kMaxTopLogProbs);
  check_range("thinking_budget", options.thinking_budget, -1, 1 << 30);
  if (options.stop.size() > kMaxStops) {
    throw Error(ErrorCode::invalid_argument, fmt::format("{} stop strings, at most {} are possible",
                                                         options.stop.size(), kMaxStops));
  }
  if (std::any_of(options.stop.begin(), options.stop.end(),
                  [](const std::string& stop) { return stop.empty(); })) {
    throw Error(ErrorCode::invalid_argument, "a stop string is empty", "leave it out");
  }
}

void check_answer_form(const Request& request) {
  const bool has_form = request.response_format.kind != ResponseFormat::Kind::text ||
                        request.tool_choice == ToolChoice::required ||
                        request.tool_choice == ToolChoice::named;
  if (has_form && request.sampling.ignore_eos) {
    throw Error(ErrorCode::invalid_argument,
                "ignore_eos goes on after an answer of a given form has ended",
                "leave out ignore_eos, or the response format and the forced tool call");
  }
}

RowSampling resolve_sampling(const SamplingOptions& options, const GenerationConfig& generation,
                             uint64_t fresh_seed) {
  RowSampling row;
  row.temperature =
      options.temperature.value_or(generation.do_sample ? generation.temperature : 0.0F);
  row.top_k = options.top_k.value_or(generation.top_k);
  row.top_p = options.top_p.value_or(generation.top_p);
  row.min_p = options.min_p.value_or(generation.min_p);
  row.repetition_penalty = options.repetition_penalty.value_or(generation.repetition_penalty);
  row.presence_penalty = options.presence_penalty;
  row.frequency_penalty = options.frequency_penalty;
  row.seed = options.seed.value_or(fresh_seed);
  row.logprobs = options.logprobs;
  return row;
}

void check_engine_options(const EngineOptions& options) {
  check_not_negative("threads", options.threads);
  check_not_negative("context", options.context);
  check_not_negative("max_sequences", options.max_sequences);
  check_not_negative("kv_tokens", options.kv_tokens);
  check_not_negative("min_pixels", options.min_pixels);
  check_not_negative("max_pixels", options.max_pixels);
  check_not_negative("memory_cap_bytes", options.memory_cap_bytes);
  check_not_negative("picture_cache_bytes", options.picture_cache_bytes);
  check_not_negative("picture_threads", options.picture_threads);
  check_not_negative("max_queue", options.max_queue);
  check_range("threads", options.threads, 0, 1024);
  check_range("stuck_step_seconds", options.stuck_step_seconds, 0.0, 1e6);
}

}  // namespace glimpse
