#include "base/float_formats.h"

#include <cmath>

#include <gtest/gtest.h>

namespace glimpse {
namespace {

TEST(FloatFormats, EveryFloat16RoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 x{static_cast<uint16_t>(bits)};
    if (std::isnan(to_float(x))) continue;
    EXPECT_EQ(to_float16(to_float(x)).bits, x.bits) << bits;
  }
}

TEST(FloatFormats, EveryBFloat16RoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const BFloat16 x{static_cast<uint16_t>(bits)};
    if (std::isnan(to_float(x))) continue;
    EXPECT_EQ(to_bfloat16(to_float(x)).bits, x.bits) << bits;
  }
}

TEST(FloatFormats, EveryFloat8RoundTripsAndMatchesItsDefinition) {
  for (int bits = 0; bits < 256; ++bits) {
    const Float8E4M3 x{static_cast<uint8_t>(bits)};
    const int exponent = (bits >> 3) & 15;
    const int mantissa = bits & 7;
    if ((bits & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(to_float(x)));
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    EXPECT_EQ(to_float(x), bits & 0x80 ? -magnitude : magnitude) << bits;
    EXPECT_EQ(to_float8_e4m3(to_float(x)).bits, x.bits) << bits;
  }
}

TEST(FloatFormats, Float8RoundsToNearestEvenAndSaturates) {
  EXPECT_EQ(to_float(to_float8_e4m3(17.0F)), 16.0F);  // halfway between 16 and 18: even mantissa
  EXPECT_EQ(to_float(to_float8_e4m3(19.0F)), 20.0F);
  EXPECT_EQ(to_float(to_float8_e4m3(1e9F)), 448.0F);
  EXPECT_EQ(to_float(to_float8_e4m3(-1e9F)), -448.0F);
  EXPECT_EQ(to_float(to_float8_e4m3(0x1p-10F)), 0.0F);
  EXPECT_EQ(to_float(to_float8_e4m3(0x1.8p-10F)), 0x1p-9F);
}

}  // namespace
}  // namespace glimpse
