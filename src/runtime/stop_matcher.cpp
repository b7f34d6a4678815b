#include "runtime/stop_matcher.h"

#include <algorithm>

namespace glimpse {

std::optional<size_t> StopMatcher::find(std::string_view text) const {
  size_t first = std::string_view::npos;
  for (const std::string& stop : stops_) first = std::min(first, text.find(stop));
  if (first == std::string_view::npos) return std::nullopt;
  return first;
}

size_t StopMatcher::safe_length(std::string_view text) const {
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, text.size()); length > held; --length) {
      if (text.ends_with(std::string_view(stop).substr(0, length))) held = length;
    }
  }
  return text.size() - held;
}

}  // namespace glimpse
