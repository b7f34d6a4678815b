// How many of something a second, lately.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace glimpse {

/// Counts in slots of a second and forgets those older than kSeconds. Not thread-safe.
class RecentRate {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr int64_t kSeconds = 10;

  void add(Time now, int64_t count) { slot_of(now).count += count; }

  /// Over the last kSeconds whole seconds and the running one; a count that began later is spread
  /// over its own time, of at least a second.
  [[nodiscard]] double per_second(Time now) const {
    const int64_t second = second_of(now);
    int64_t sum = 0;
    int64_t oldest = second;
    for (const Slot& slot : slots_) {
      if (slot.count == 0 || slot.second < second - kSeconds) continue;
      sum += slot.count;
      oldest = slot.second < oldest ? slot.second : oldest;
    }
    const std::chrono::duration<double> elapsed =
        now.time_since_epoch() - std::chrono::seconds(oldest);
    return static_cast<double>(sum) / (elapsed.count() > 1 ? elapsed.count() : 1.0);
  }

 private:
  struct Slot {
    int64_t second = 0;
    int64_t count = 0;
  };

  static int64_t second_of(Time now) {
    return std::chrono::floor<std::chrono::seconds>(now.time_since_epoch()).count();
  }
  Slot& slot_of(Time now) {
    const int64_t second = second_of(now);
    Slot& slot = slots_[static_cast<size_t>(second) % slots_.size()];
    if (slot.second != second) slot = {second, 0};
    return slot;
  }

  std::array<Slot, kSeconds + 1> slots_{};
};

}  // namespace glimpse
