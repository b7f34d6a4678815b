#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace glimpse {
namespace {

TEST(ThreadPool, EveryItemIsVisitedOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 7, 1000, 4097}) {
      for (const int64_t grain : {0, 1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        pool.parallel_for(count, grain, [&](int64_t first, int64_t last) {
          for (int64_t i = first; i < last; ++i) ++visits[static_cast<size_t>(i)];
        });
        for (const auto& n : visits) EXPECT_EQ(n, 1) << threads << " " << count << " " << grain;
      }
    }
  }
}

TEST(ThreadPool, ChunksAreMultiplesOfTheGrainUpToTheLast) {
  constexpr int64_t kCount = 1000;
  constexpr int64_t kGrain = 24;
  ThreadPool pool(3);
  pool.parallel_for(kCount, kGrain, [&](int64_t first, int64_t last) {
    EXPECT_EQ(first % kGrain, 0);
    EXPECT_LT(first, last);
    if (last != kCount) {
      EXPECT_EQ(last % kGrain, 0);
    }
  });
}

TEST(ThreadPool, AnExceptionIsThrownWhenTheLoopIsDoneAndTheNextLoopRuns) {
  ThreadPool pool(4);
  const auto fail = [](int64_t first, int64_t) {
    if (first == 0) throw std::runtime_error("item 0");
  };
  EXPECT_THROW(pool.parallel_for(100, 1, fail), std::runtime_error);
  std::atomic<int64_t> sum = 0;
  pool.parallel_for(100, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) sum += i;
  });
  EXPECT_EQ(sum, 4950);
}

}  // namespace
}  // namespace glimpse
