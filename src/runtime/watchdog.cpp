#include "runtime/watchdog.h"

#include <utility>

namespace glimpse {
namespace {

// A stuck step is noticed at most this share of the limit too late.
constexpr int kLooksPerLimit = 8;

}  // namespace

Watchdog::Watchdog(std::chrono::milliseconds limit, std::function<void()> on_stuck)
    : limit_(limit), on_stuck_(std::move(on_stuck)), thread_([this] { watch(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ended_.notify_all();
  thread_.join();
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!ended_.wait_for(lock, limit_ / kLooksPerLimit, [this] { return ending_; })) {
    const Nanoseconds began = began_;
    if (began == kIdle || now() - began <= limit_.count()) continue;
    lock.unlock();
    on_stuck_();
    return;
  }
}

}  // namespace glimpse
