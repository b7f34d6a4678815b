#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <exception>

namespace glimpse {
namespace {

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Longer than the gap between two loops of a step, far shorter than the gap between two requests.
constexpr std::chrono::microseconds kSpinTime{200};
constexpr int kSpinsPerLook = 32;

// Spins until `done()`, for about `kSpinTime`; whether it came true.
template <typename Done>
bool spin_until(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  const int count = num_threads > 0 ? num_threads : usable_cores();
  workers_.reserve(static_cast<size_t>(count - 1));
  for (int i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::parallel_for(int64_t count, int64_t grain,
                              const std::function<void(int64_t, int64_t)>& body) {
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || count <= grain) {
    if (count > 0) body(0, count);
    return;
  }
  body_ = &body;
  count_ = count;
  grain_ = grain;
  error_ = nullptr;
  next_.store(0, std::memory_order_relaxed);
  num_running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  run_chunks();
  const auto done = [this] { return num_running_.load(std::memory_order_acquire) == 0; };
  // A worker that lost its core to another program needs ours more than we do.
  while (!spin_until(done)) std::this_thread::yield();
  if (error_) std::rethrow_exception(error_);
}

// Chunks shrink towards the end: the first ones are long, so that each thread reads its part of a
// weight as one stream, the last ones even out what the threads took.
void ThreadPool::run_chunks() noexcept {
  const int64_t shares = 2 * num_threads();
  int64_t first = next_.load(std::memory_order_relaxed);
  for (;;) {
    if (first >= count_) return;
    const int64_t share = (count_ - first) / shares / grain_ * grain_;
    const int64_t last = std::min(first + std::max(share, grain_), count_);
    if (!next_.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
    try {
      (*body_)(first, last);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    first = next_.load(std::memory_order_relaxed);
  }
}

void ThreadPool::work() {
  uint64_t seen = 0;
  for (;;) {
    const auto has_news = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(has_news)) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, has_news);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    run_chunks();
    num_running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace glimpse
