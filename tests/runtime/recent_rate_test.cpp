#include "runtime/recent_rate.h"

#include <gtest/gtest.h>

namespace glimpse {
namespace {

using std::chrono::milliseconds;

RecentRate::Time at(int64_t ms) {
  return RecentRate::Time(milliseconds(1'000'000'000 + ms));
}

TEST(RecentRate, NothingCountedIsZero) {
  EXPECT_EQ(RecentRate().per_second(at(0)), 0.0);
}

TEST(RecentRate, TheFirstSecondIsAWholeOne) {
  RecentRate rate;
  rate.add(at(100), 30);
  EXPECT_DOUBLE_EQ(rate.per_second(at(200)), 30.0);
}

TEST(RecentRate, ASteadyStreamShowsItsRateWhateverItsAge) {
  RecentRate rate;
  for (int64_t second = 0; second < 40; ++second) {
    for (int64_t i = 0; i < 10; ++i) rate.add(at(second * 1000 + i * 100), 5);
    EXPECT_NEAR(rate.per_second(at(second * 1000 + 999)), 50.0, 0.1) << second;
  }
}

TEST(RecentRate, WhatIsOlderThanTheWindowIsForgotten) {
  RecentRate rate;
  rate.add(at(0), 1000);
  EXPECT_NEAR(rate.per_second(at(4000)), 250.0, 0.1);
  EXPECT_NEAR(rate.per_second(at(RecentRate::kSeconds * 1000)), 100.0, 0.1);
  EXPECT_EQ(rate.per_second(at((RecentRate::kSeconds + 1) * 1000)), 0.0);
  rate.add(at(60'000), 7);
  EXPECT_DOUBLE_EQ(rate.per_second(at(60'500)), 7.0);
}

}  // namespace
}  // namespace glimpse
