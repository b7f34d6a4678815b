#include "runtime/worker_pool.h"

#include <utility>

namespace glimpse {

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    tasks_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    const bool all_busy = static_cast<int>(tasks_.size()) > num_idle_;
    if (all_busy && static_cast<int>(threads_.size()) < num_threads_) {
      threads_.emplace_back([this] { work(); });
    }
  }
  wake_.notify_one();
}

void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++num_idle_;
    wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    --num_idle_;
    if (stopping_) return;
    const std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

}  // namespace glimpse
