// What requests hold together stays below the limit.
#include "server/byte_budget.h"

#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace glimpse {
namespace {

TEST(ByteBudget, AShareGrowsUntilTheLimitAndGivesAllBack) {
  const auto budget = std::make_shared<ByteBudget>(10);
  BudgetShare share(budget);
  EXPECT_TRUE(share.grow_to(4));
  EXPECT_TRUE(share.grow_to(10));
  EXPECT_TRUE(share.grow_to(7));  // holds 10 already
  EXPECT_EQ(budget->used(), 10U);
  EXPECT_FALSE(share.grow_to(11));
  EXPECT_EQ(budget->used(), 10U);
  share.give_back();
  EXPECT_EQ(budget->used(), 0U);
}

TEST(ByteBudget, OthersFindOnlyTheRoomThatIsLeft) {
  const auto budget = std::make_shared<ByteBudget>(10);
  BudgetShare other(budget);
  {
    BudgetShare share(budget);
    EXPECT_TRUE(share.grow_to(7));
    EXPECT_TRUE(budget->has_room(3));
    EXPECT_FALSE(budget->has_room(4));
    EXPECT_FALSE(other.grow_to(4));
  }
  EXPECT_TRUE(other.grow_to(10));
}

TEST(ByteBudget, LengthsNearTheEndOfTheRangeDoNotWrapAround) {
  const auto budget = std::make_shared<ByteBudget>(10);
  BudgetShare share(budget);
  EXPECT_TRUE(share.grow_to(1));
  EXPECT_FALSE(budget->has_room(UINT64_MAX));
  EXPECT_FALSE(share.grow_to(UINT64_MAX));
}

TEST(ByteBudget, WithoutABudgetEverythingFits) {
  BudgetShare share(nullptr);
  EXPECT_TRUE(share.grow_to(UINT64_MAX));
}

TEST(ByteBudget, ThreadsNeverHoldMoreThanTheLimitTogether) {
  const auto budget = std::make_shared<ByteBudget>(100);
  std::atomic<bool> exceeded = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&budget, &exceeded] {
      for (uint64_t k = 0; k < 2000; ++k) {
        BudgetShare share(budget);
        const bool fits = share.grow_to(k % 60);
        if (budget->used() > 100 || (!fits && k % 60 == 0)) exceeded = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(exceeded);
  EXPECT_EQ(budget->used(), 0U);
}

}  // namespace
}  // namespace glimpse
