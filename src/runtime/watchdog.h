// Notices a step that does not come back: a GPU that hangs answers no call, so the thread that
// waits for it cannot tell anyone.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace glimpse {

/// One thread works in steps, the watchdog's own thread looks at its clock now and then.
class Watchdog {
 public:
  /// `on_stuck` is called once, on the watchdog's thread, when a step has taken longer than
  /// `limit`.
  Watchdog(std::chrono::milliseconds limit, std::function<void()> on_stuck);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void begin_step() { began_ = now(); }
  void end_step() { began_ = kIdle; }

 private:
  using Nanoseconds = std::chrono::nanoseconds::rep;
  static constexpr Nanoseconds kIdle = 0;

  [[nodiscard]] static Nanoseconds now() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
  }
  void watch();

  std::chrono::nanoseconds limit_;
  std::function<void()> on_stuck_;
  std::atomic<Nanoseconds> began_{kIdle};
  std::mutex mutex_;
  std::condition_variable ended_;
  bool ending_ = false;
  std::thread thread_;
};

/// From here to the end of the scope is one step; without a watchdog nobody looks.
class WatchedStep {
 public:
  explicit WatchedStep(Watchdog* watchdog) : watchdog_(watchdog) {
    if (watchdog_ != nullptr) watchdog_->begin_step();
  }
  ~WatchedStep() {
    if (watchdog_ != nullptr) watchdog_->end_step();
  }
  WatchedStep(const WatchedStep&) = delete;
  WatchedStep& operator=(const WatchedStep&) = delete;

 private:
  Watchdog* watchdog_;
};

}  // namespace glimpse
