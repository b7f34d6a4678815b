#include "image/pixel_buffers.h"

#include <algorithm>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace glimpse {
namespace {

constexpr size_t kMebibyte = size_t{1} << 20;

// Takes what is kept, by other tests too, until `memory` comes; empty where it does not.
std::vector<uint8_t> take_until(const uint8_t* memory, size_t size) {
  std::vector<std::vector<uint8_t>> others;
  for (int i = 0; i < 130; ++i) {  // 32 MiB in the smallest pieces that are kept
    std::vector<uint8_t> taken = take_pixels(size);
    if (taken.data() == memory) return taken;
    others.push_back(std::move(taken));
  }
  return {};
}

TEST(PixelBuffers, GiveRecycledMemoryAsZeros) {
  std::vector<uint8_t> first = take_pixels(3 * kMebibyte);
  std::ranges::fill(first, uint8_t{7});
  const uint8_t* memory = first.data();
  recycle_pixels(std::move(first));
  const std::vector<uint8_t> second = take_until(memory, 2 * kMebibyte + 5);
  EXPECT_EQ(second.size(), 2 * kMebibyte + 5);
  EXPECT_THAT(second, ::testing::Each(0));
}

TEST(PixelBuffers, AreNotGivenToMuchSmallerPictures) {
  std::vector<uint8_t> large = take_pixels(16 * kMebibyte);
  const uint8_t* memory = large.data();
  recycle_pixels(std::move(large));
  EXPECT_TRUE(take_until(memory, kMebibyte).empty());
  EXPECT_FALSE(take_until(memory, 16 * kMebibyte).empty());
}

TEST(PixelBuffers, ForgetTheOldestOfTooMany) {
  for (int i = 0; i < 40; ++i) recycle_pixels(std::vector<uint8_t>(8 * kMebibyte));
  std::vector<uint8_t> newest(5 * kMebibyte);
  const uint8_t* memory = newest.data();
  recycle_pixels(std::move(newest));
  EXPECT_FALSE(take_until(memory, 5 * kMebibyte).empty());
}

}  // namespace
}  // namespace glimpse
