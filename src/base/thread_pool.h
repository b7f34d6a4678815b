// A fixed team of threads for data-parallel loops. The caller works too, so a pool of one thread
// starts none. Workers spin briefly between loops: a decode step has hundreds of short ones.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace glimpse {

/// One loop at a time: parallel_for() is called from one thread only (the engine's).
class ThreadPool {
 public:
  /// `num_threads` counts the caller; 0 means one per core that this process may use.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(first, last) for chunks of [0, count), taken dynamically, and returns when all are
  /// done. A chunk is a multiple of `grain` items, the last one may be smaller. The first exception
  /// is rethrown.
  void parallel_for(int64_t count, int64_t grain,
                    const std::function<void(int64_t first, int64_t last)>& body);

 private:
  void work();
  void run_chunks() noexcept;

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_ = 0;
  std::atomic<int> num_running_ = 0;
  std::atomic<bool> stopping_ = false;
  // The loop in flight.
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 1;
  std::atomic<int64_t> next_ = 0;
  std::exception_ptr error_;
};

}  // namespace glimpse
