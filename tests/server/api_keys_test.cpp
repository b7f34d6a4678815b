// Who is let in. That the comparison takes the same time for every key is the library's promise
// (CRYPTO_memcmp); here, that nothing but the whole key will do.
#include "server/api_keys.h"

#include <gtest/gtest.h>

namespace glimpse {
namespace {

TEST(ApiKeys, DigestsAreComparedInEveryBit) {
  Sha256 a{};
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(i * 37);
  EXPECT_TRUE(equal_in_constant_time(a, a));
  for (size_t i = 0; i < a.size(); ++i) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      Sha256 b = a;
      b[i] = static_cast<uint8_t>(b[i] ^ (1U << bit));
      EXPECT_FALSE(equal_in_constant_time(a, b)) << i << " " << bit;
      EXPECT_FALSE(equal_in_constant_time(b, a)) << i << " " << bit;
    }
  }
}

TEST(ApiKeys, EachKeyOfTheListLetsIn) {
  const ApiKeys keys({"first-key", "second-key", "a third one, with spaces"});
  EXPECT_TRUE(keys.are_needed());
  EXPECT_TRUE(keys.accept("Bearer first-key"));
  EXPECT_TRUE(keys.accept("Bearer second-key"));
  EXPECT_TRUE(keys.accept("Bearer a third one, with spaces"));
}

TEST(ApiKeys, NothingButAWholeKeyLetsIn) {
  const ApiKeys keys({"first-key", "second-key"});
  for (const char* wrong :
       {"", "Bearer", "Bearer ", "Bearer first-ke", "Bearer first-keyy", "Bearer irst-key",
        "Bearer First-key", "Bearer  first-key", "Bearer first-key ", "Bearer first-keysecond-key",
        "first-key", "bearer first-key", "Basic first-key", "Bearer\tfirst-key"}) {
    EXPECT_FALSE(keys.accept(wrong)) << wrong;
  }
  EXPECT_FALSE(keys.accept(std::string("Bearer first-key\0", 17)));
  EXPECT_FALSE(keys.accept("Bearer " + std::string(100'000, 'x')));
}

TEST(ApiKeys, WithoutKeysNobodyIsAskedForOne) {
  const ApiKeys none({});
  EXPECT_FALSE(none.are_needed());
  EXPECT_TRUE(none.accept(""));
  EXPECT_TRUE(none.accept("Bearer anything"));
}

}  // namespace
}  // namespace glimpse
