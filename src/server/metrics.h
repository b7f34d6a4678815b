// What /metrics counts beside the engine's own numbers, and Prometheus' text form of both.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "glimpse/engine.h"
#include "server/generation.h"

namespace glimpse {

/// Counts of durations below fixed bounds.
class DurationHistogram {
 public:
  void add(double milliseconds);
  /// Appends the metric's lines.
  void write(const std::string& name, const std::string& help, std::string& text) const;

 private:
  static constexpr std::array<double, 12> kBounds = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                                     1,    2.5,   5,    10,  30,   60};  // seconds
  std::array<int64_t, kBounds.size() + 1> counts_{};
  double sum_ = 0;  // seconds
};

/// Thread-safe.
class Metrics {
 public:
  void add(const GenerationRecord& record);
  void add_response(const std::string& route, int status);
  /// All lines; without `engine` (unloaded) only the server's own.
  [[nodiscard]] std::string text(const std::optional<EngineStatus>& engine, int connections) const;

 private:
  mutable std::mutex mutex_;
  DurationHistogram first_token_;
  DurationHistogram total_;
  std::map<std::pair<std::string, int>, int64_t> responses_;  // by route and status
};

}  // namespace glimpse
