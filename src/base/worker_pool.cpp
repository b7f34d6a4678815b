#include "base/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <utility>

namespace glimpse {
namespace {

using Body = std::function<void(int64_t, int64_t)>;

// A loop that several threads share. A helper may come when it is over, even when its caller has
// returned: it then finds it closed, and does not touch the body.
class SharedLoop {
 public:
  SharedLoop(int64_t count, int64_t grain, const Body& body)
      : count_(count), grain_(grain), body_(body) {}

  void help() {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      ++num_helping_;
    }
    run();
    const std::lock_guard lock(mutex_);
    if (--num_helping_ == 0) done_.notify_all();
  }
  void run() {
    for (int64_t first = next_.fetch_add(grain_); first < count_; first = next_.fetch_add(grain_)) {
      try {
        body_(first, std::min(first + grain_, count_));
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }
  void finish() {
    std::unique_lock lock(mutex_);
    closed_ = true;
    done_.wait(lock, [this] { return num_helping_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int64_t count_;
  const int64_t grain_;
  const Body& body_;
  std::atomic<int64_t> next_ = 0;
  std::mutex mutex_;
  std::condition_variable done_;
  int num_helping_ = 0;
  bool closed_ = false;
  std::exception_ptr error_;
};

}  // namespace

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

void WorkerPool::parallel_for(int64_t count, int64_t grain, const Body& body) {
  grain = std::max<int64_t>(grain, 1);
  const auto loop = std::make_shared<SharedLoop>(count, grain, body);
  const int64_t num_pieces = (count + grain - 1) / grain;
  const int64_t num_helpers = std::min<int64_t>(num_pieces, num_threads_) - 1;
  for (int64_t i = 0; i < num_helpers; ++i) post([loop] { loop->help(); });
  loop->run();
  loop->finish();
}

void parallel_for(WorkerPool* pool, int64_t count, int64_t grain, const Body& body) {
  if (pool != nullptr) {
    pool->parallel_for(count, grain, body);
  } else if (count > 0) {
    body(0, count);
  }
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
