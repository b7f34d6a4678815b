#include "model/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace glimpse {
namespace {

struct Quantized {
  std::vector<std::byte> codes;
  std::vector<float> scales;
};

template <typename T>
Quantized quantize(std::vector<T>& weights, int64_t out, int64_t in) {
  ThreadPool pool(2);
  const int64_t blocks = ((out + 127) / 128) * ((in + 127) / 128);
  Quantized result{std::vector<std::byte>(weights.size()),
                   std::vector<float>(static_cast<size_t>(blocks))};
  quantize_blocks(Tensor(weights.data(), kDTypeOf<T>, Device::cpu, {out, in}), "w", pool,
                  result.codes, result.scales);
  return result;
}

std::vector<float> random_floats(size_t count) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 0.03F);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(QuantizeBlocks, FollowTheFormulaOnRaggedEdges) {
  const int64_t out = 259;
  const int64_t in = 131;
  std::vector<float> weights = random_floats(static_cast<size_t>(out * in));
  const Quantized result = quantize(weights, out, in);
  ASSERT_EQ(result.scales.size(), 6U);
  for (int64_t block = 0; block < 6; ++block) {
    float largest = 0;
    for (int64_t r = block / 2 * 128; r < std::min<int64_t>(out, (block / 2 + 1) * 128); ++r) {
      for (int64_t c = block % 2 * 128; c < std::min<int64_t>(in, (block % 2 + 1) * 128); ++c) {
        largest = std::max(largest, std::fabs(weights[static_cast<size_t>(r * in + c)]));
      }
    }
    EXPECT_EQ(result.scales[static_cast<size_t>(block)], largest / 448.0F);
  }
  for (int64_t i = 0; i < out * in; ++i) {
    const auto at = static_cast<size_t>(i);
    const float scale = result.scales[static_cast<size_t>(i / in / 128 * 2 + i % in / 128)];
    const Float8E4M3 code{static_cast<uint8_t>(result.codes[at])};
    EXPECT_EQ(code.bits, to_float8_e4m3(weights[at] / scale).bits);
    // Three mantissa bits: half a step is 2^-4 of the value, or 2^-10 scales below 2^-6.
    const float bound = std::max(std::fabs(weights[at]) * 0x1p-4F, scale * 0x1p-10F);
    EXPECT_NEAR(to_float(code) * scale, weights[at], bound * 1.0001F);
  }
}

TEST(QuantizeBlocks, KeepAZeroBlockAndTheLargestValueExact) {
  std::vector<BFloat16> weights(128 * 256, BFloat16{0});
  weights[128] = to_bfloat16(-3.5F);
  const Quantized result = quantize(weights, 128, 256);
  EXPECT_EQ(result.scales[0], 1.0F);
  EXPECT_EQ(result.scales[1], 3.5F / 448.0F);
  EXPECT_EQ(static_cast<uint8_t>(result.codes[128]), 0xFE);  // -448
  EXPECT_EQ(static_cast<uint8_t>(result.codes[0]), 0x00);
}

TEST(QuantizeBlocks, RefuseNanAndInfinity) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> weights = random_floats(130 * 3);
    weights[129 * 3] = bad;
    EXPECT_THROW(quantize(weights, 130, 3), Error);
  }
}

}  // namespace
}  // namespace glimpse
