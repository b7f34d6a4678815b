// Stop strings in a stream of text: what could still become one is held back.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace glimpse {

/// Immutable after construction.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Where the first of the stop strings begins in `text`.
  [[nodiscard]] std::optional<size_t> find(std::string_view text) const;
  /// How many bytes of `text` are safe to pass on: the rest is the beginning of a stop string.
  [[nodiscard]] size_t safe_length(std::string_view text) const;

 private:
  std::vector<std::string> stops_;
};

}  // namespace glimpse
