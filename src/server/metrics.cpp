#include "server/metrics.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

namespace glimpse {
namespace {

void write_head(std::string_view name, std::string_view type, std::string_view help,
                std::string& text) {
  text += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void write_one(std::string_view name, std::string_view type, std::string_view help, double value,
               std::string& text) {
  write_head(name, type, help, text);
  text += fmt::format("{} {}\n", name, value);
}

// Inside the quotes of a label.
std::string escaped(const std::string& value) {
  std::string result;
  for (const char c : value) {
    if (c == '\\' || c == '"') result += '\\';
    result += c == '\n' ? ' ' : c;
  }
  return result;
}

void write_engine(const EngineStatus& status, std::string& text) {
  struct Line {
    std::string_view name, type, help;
    double value;
  };
  const auto number = [](auto value) { return static_cast<double>(value); };
  const Line lines[] = {
      {"glimpse_healthy", "gauge", "1 while the device works.", status.healthy ? 1.0 : 0.0},
      {"glimpse_requests_waiting", "gauge", "Requests in the queue.", number(status.waiting)},
      {"glimpse_requests_running", "gauge", "Requests being computed.", number(status.running)},
      {"glimpse_requests_finished_total", "counter", "Requests answered.",
       number(status.requests_finished)},
      {"glimpse_requests_failed_total", "counter", "Requests failed or cancelled.",
       number(status.requests_failed)},
      {"glimpse_prompt_tokens_total", "counter", "Tokens of prompts.",
       number(status.prompt_tokens)},
      {"glimpse_completion_tokens_total", "counter", "Tokens of answers.",
       number(status.completion_tokens)},
      {"glimpse_tokens_per_second", "gauge", "Tokens of answers over the last ten seconds.",
       status.completion_tokens_per_second},
      {"glimpse_prefix_cache_hit_tokens_total", "counter", "Prompt tokens found in the cache.",
       number(status.prefix_cache_hit_tokens)},
      {"glimpse_pictures_total", "counter", "Pictures in prompts.", number(status.pictures)},
      {"glimpse_picture_cache_hits_total", "counter", "Pictures that needed no vision pass.",
       number(status.picture_cache_hits)},
      {"glimpse_vision_seconds_total", "counter", "Time in the vision tower.",
       status.vision_milliseconds / 1000},
      {"glimpse_preemptions_total", "counter", "Sequences computed again for want of pages.",
       number(status.preemptions)},
      {"glimpse_steps_total", "counter", "Steps of the engine.", number(status.steps)},
      {"glimpse_longest_step_seconds", "gauge", "The longest step.",
       status.longest_step_milliseconds / 1000},
      {"glimpse_kv_pages", "gauge", "Pages of the KV cache.", number(status.kv_pages_total)},
      {"glimpse_kv_pages_used", "gauge", "Pages in use.", number(status.kv_pages_used)},
      {"glimpse_resident_bytes", "gauge", "Memory of the process.", number(status.resident_bytes)},
  };
  for (const Line& line : lines) write_one(line.name, line.type, line.help, line.value, text);
  write_head("glimpse_memory_bytes", "gauge", "The memory plan by tensor group.", text);
  for (const MemoryItem& item : status.memory) {
    text +=
        fmt::format("glimpse_memory_bytes{{group=\"{}\"}} {}\n", escaped(item.name), item.bytes);
  }
}

}  // namespace

void DurationHistogram::add(double milliseconds) {
  const double seconds = milliseconds / 1000;
  sum_ += seconds;
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
  ++counts_[static_cast<size_t>(bound - kBounds.begin())];
}

void DurationHistogram::write(const std::string& name, const std::string& help,
                              std::string& text) const {
  write_head(name, "histogram", help, text);
  int64_t count = 0;
  for (size_t i = 0; i < kBounds.size(); ++i) {
    count += counts_[i];
    text += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kBounds[i], count);
  }
  count += counts_.back();
  text += fmt::format("{}_bucket{{le=\"+Inf\"}} {}\n{}_sum {}\n{}_count {}\n", name, count, name,
                      sum_, name, count);
}

void Metrics::add(const GenerationRecord& record) {
  if (record.failed) return;
  const std::lock_guard lock(mutex_);
  first_token_.add(record.first_token_milliseconds);
  total_.add(record.total_milliseconds);
}

void Metrics::add_response(const std::string& route, int status) {
  const std::lock_guard lock(mutex_);
  ++responses_[{route, status}];
}

std::string Metrics::text(const std::optional<EngineStatus>& engine, int connections) const {
  std::string text;
  write_one("glimpse_loaded", "gauge", "1 while the model is in memory.", engine ? 1 : 0, text);
  write_one("glimpse_connections", "gauge", "Open connections.", connections, text);
  {
    const std::lock_guard lock(mutex_);
    first_token_.write("glimpse_time_to_first_token_seconds", "From submission to the first token.",
                       text);
    total_.write("glimpse_request_seconds", "From submission to the last token.", text);
    write_head("glimpse_http_responses_total", "counter", "Answers by route and status.", text);
    for (const auto& [key, count] : responses_) {
      text += fmt::format("glimpse_http_responses_total{{route=\"{}\",status=\"{}\"}} {}\n",
                          escaped(key.first), key.second, count);
    }
  }
  if (engine) write_engine(*engine, text);
  return text;
}

}  // namespace glimpse
