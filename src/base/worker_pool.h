// The threads that read, decode and resize pictures and tokenise text, so that neither the engine's
// thread nor a caller's ever does. Started when there is first something to do.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace glimpse {

/// Runs tasks in the order they came, at most `num_threads` at once. Thread-safe.
class WorkerPool {
 public:
  explicit WorkerPool(int num_threads) : num_threads_(num_threads) {}
  /// Waits for tasks that run and drops those that wait.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// `task` must not throw.
  void post(std::function<void()> task);

  /// Calls body(first, last) for pieces of `grain` items of [0, count), on the calling thread and
  /// on workers that have nothing else to do; returns when all are done. May be called by a task: a
  /// pool whose threads are busy leaves the whole loop to its caller. The first exception is
  /// rethrown.
  void parallel_for(int64_t count, int64_t grain,
                    const std::function<void(int64_t first, int64_t last)>& body);

 private:
  void work();

  int num_threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  int num_idle_ = 0;
  bool stopping_ = false;
};

/// The same loop where there may be no pool.
void parallel_for(WorkerPool* pool, int64_t count, int64_t grain,
                  const std::function<void(int64_t first, int64_t last)>& body);

}  // namespace glimpse
