#include "base/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <stdexcept>
#include <vector>

namespace glimpse {
namespace {

TEST(WorkerPool, SharesALoopWithoutMissingOrRepeatingAnItem) {
  WorkerPool pool(4);
  for (const int64_t count : {0, 1, 7, 64, 1000}) {
    for (const int64_t grain : {1, 3, 2000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      pool.parallel_for(count, grain, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const std::atomic<int>& times : seen) EXPECT_EQ(times, 1);
    }
  }
}

TEST(WorkerPool, LeavesTheLoopOfATaskToItWhenNobodyIsFree) {
  WorkerPool pool(1);
  std::promise<int64_t> sum;
  pool.post([&] {
    std::atomic<int64_t> total = 0;
    pool.parallel_for(100, 1, [&](int64_t first, int64_t) { total += first; });
    sum.set_value(total);
  });
  EXPECT_EQ(sum.get_future().get(), 4950);
}

TEST(WorkerPool, AllTasksMayShareTheirLoopsAtOnce) {
  std::atomic<int64_t> total = 0;
  std::vector<std::promise<void>> done(8);
  WorkerPool pool(3);
  for (std::promise<void>& each : done) {
    pool.post([&] {
      pool.parallel_for(50, 1, [&](int64_t first, int64_t last) { total += last - first; });
      each.set_value();
    });
  }
  for (std::promise<void>& each : done) each.get_future().wait();
  EXPECT_EQ(total, 8 * 50);
}

TEST(WorkerPool, GivesALoopsExceptionToItsCaller) {
  WorkerPool pool(3);
  EXPECT_THROW(pool.parallel_for(20, 1,
                                 [](int64_t first, int64_t) {
                                   if (first == 11) throw std::runtime_error("eleven");
                                 }),
               std::runtime_error);
}

TEST(WorkerPool, WithoutAPoolTheCallerDoesItAll) {
  int64_t covered = 0;
  parallel_for(nullptr, 17, 2, [&](int64_t first, int64_t last) { covered += last - first; });
  EXPECT_EQ(covered, 17);
}

}  // namespace
}  // namespace glimpse
