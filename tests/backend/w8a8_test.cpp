// FP8 activations times FP8 weights: the rounding of activations by hand, and the products of every
// backend against the formula of backend.h evaluated in double.
#include <array>
#include <limits>

#include "cpu/quantize_activations.h"
#include "operation_fixture.h"

namespace glimpse::testing {
namespace {

/// The code whose value is nearest to `value`, of two equally near ones the even one: found by
/// looking at all of them.
Float8E4M3 nearest_code(double value) {
  uint8_t best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  for (uint8_t bits = 0; bits < 0x7F; ++bits) {
    const double distance = std::fabs(std::fabs(value) - to_float(Float8E4M3{bits}));
    const bool is_nearer = distance < best_distance || (distance == best_distance && bits % 2 == 0);
    if (is_nearer) best = bits, best_distance = distance;
  }
  return {static_cast<uint8_t>(best | (std::signbit(value) ? 0x80 : 0))};
}

/// What quantize_group() makes of numbers, the scale behind the values.
std::vector<float> quantized(const std::vector<float>& x) {
  std::vector<Float8E4M3> codes(x.size());
  const float scale = cpu::quantize_group(x.data(), static_cast<int64_t>(x.size()), codes.data());
  std::vector<float> result;
  for (const Float8E4M3 code : codes) result.push_back(to_float(code));
  result.push_back(scale);
  return result;
}

using Floats = std::vector<float>;

TEST(QuantizeGroup, TiesGoToTheEvenCodeAndTheLargestIsTheFormatsLargest) {
  // With 448 in the group the scale is 1. Codes near 16 are 2 apart, near 1 an eighth.
  EXPECT_EQ(quantized({448, 17, 19, -17, 1.0625F, 1.1875F, 16.9F}),
            (Floats{448, 16, 20, -16, 1, 1.25F, 16, 1}));
  EXPECT_EQ(quantized({-896, 34, 448}), (Floats{-448, 16, 224, 2}));
}

TEST(QuantizeGroup, SmallNumbersBecomeSubnormalCodesOrZero) {
  // Subnormal codes are multiples of 2^-9.
  EXPECT_EQ(quantized({448, 0x1p-9F, 0x1.8p-9F, 0x1p-10F, 0x1.1p-10F, 0x1p-20F}),
            (Floats{448, 0x1p-9F, 0x1p-8F, 0, 0x1p-9F, 0, 1}));
}

TEST(QuantizeGroup, ZerosHaveTheScaleZeroAndNoNaN) {
  EXPECT_EQ(quantized({0, -0.0F, 0}), (Floats{0, 0, 0, 0}));
  // 448 times less than this is no float.
  const float smallest = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(quantized({smallest, -smallest}), (Floats{0, 0, 0}));
}

TEST(QuantizeGroup, AScaleThatLostItsDigitsSaturatesTheCodes) {
  // 1.4 denormal steps become one: what is divided by it exceeds 448.
  const float smallest = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(quantized({627 * smallest, -627 * smallest}), (Floats{448, -448, smallest}));
}

TEST(QuantizeGroup, NaNAndInfinityMakeAScaleThatHidesNothing) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isnan(quantized({1, NAN, 2}).back()));
  EXPECT_TRUE(std::isnan(quantized({1, NAN, infinity}).back()));
  EXPECT_EQ(quantized({1, -infinity}).back(), infinity);
}

TEST(QuantizeGroup, EveryCodeIsTheNearestOfAll) {
  std::mt19937 random(20261124);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 20; ++round) {
    Floats x(kScaleBlock);
    for (float& value : x) value = normal(random) * std::exp(normal(random));
    std::array<Float8E4M3, kScaleBlock> codes{};
    const float scale = cpu::quantize_group(x.data(), kScaleBlock, codes.data());
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(codes[i].bits, nearest_code(x[i] / scale).bits) << x[i] << " / " << scale;
    }
  }
}

/// One product with random numbers, and what the formula makes of it.
class W8A8 : public Operations {
 protected:
  struct Room {
    Pair codes;
    Pair scales;
  };
  Room room(int64_t rows, int64_t columns) {
    return {poisoned(DType::f8_e4m3, {rows, (columns + 15) / 16 * 16}),
            poisoned(DType::f32, {(columns + kScaleBlock - 1) / kScaleBlock, (rows + 1) / 2 * 2})};
  }

  /// x in which groups differ by powers of ten and one is zero.
  Pair uneven(DType dtype, int64_t rows, int64_t columns) {
    std::vector<float> values;
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t k = 0; k < columns; ++k) {
        const int64_t group = t * 5 + k / kScaleBlock;
        values.push_back(group % 7 == 3 ? 0
                                        : draw(std::pow(10.0F, static_cast<float>(group % 5 - 2))));
      }
    }
    return pair_of(values, dtype, {rows, columns});
  }

  /// x as the formula rounds it.
  struct Rounded {
    std::vector<double> codes;   // [rows, columns]
    std::vector<double> scales;  // of each element
  };
  static Rounded rounded(const std::vector<float>& x, int64_t columns) {
    Rounded result{std::vector<double>(x.size(), 0), std::vector<double>(x.size(), 0)};
    const auto size = static_cast<int64_t>(x.size());
    for (int64_t first = 0, end = 0; first < size; first = end) {
      const int64_t rest = columns - first % columns;
      end = first + std::min(kScaleBlock - first % columns % kScaleBlock, rest);
      float largest = 0;
      for (int64_t i = first; i < end; ++i) {
        largest = std::max(largest, std::fabs(x[static_cast<size_t>(i)]));
      }
      const float scale = largest / 448.0F;
      if (scale == 0) continue;
      for (int64_t i = first; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        result.codes[at] = to_float(nearest_code(x[at] / scale));
        result.scales[at] = scale;
      }
    }
    return result;
  }

  struct Sum {
    double value;
    double magnitude;  // the sum of the terms' sizes
  };
  /// Row t of x times row n of the weight, without bias.
  static Sum formula(const Rounded& x, const LinearPart& part, int64_t t, int64_t n) {
    const int64_t columns = part.weight.size(1);
    Sum sum{0, 0};
    for (int64_t k = 0; k < columns; ++k) {
      const auto at = static_cast<size_t>(t * columns + k);
      const int64_t block = n / kScaleBlock * part.scales.size(1) + k / kScaleBlock;
      const double term = x.codes[at] * x.scales[at] *
                          to_float(part.weight.data<Float8E4M3>()[n * columns + k]) *
                          part.scales.data<float>()[block];
      sum.value += term;
      sum.magnitude += std::fabs(term);
    }
    return sum;
  }

  /// Each of n additions in f32 errs by at most half a unit of a partial sum, which the sum of
  /// sizes bounds; tensor cores that add FP8 products with 13 bits after the point of the largest
  /// err by 2^-13 of it in each of the additions that they chain.
  static double bound(const Sum& sum, int64_t columns, DType out, bool on_tensor_cores) {
    const double unit = on_tensor_cores ? 0x1p-13 : 0x1p-24;
    const double chain = static_cast<double>(on_tensor_cores ? 8 : columns + 4);
    const double rounding = out == DType::bf16 ? 0x1p-8 : 0x1p-23;
    return sum.magnitude * unit * chain + (std::fabs(sum.value) + sum.magnitude * 1e-3) * rounding;
  }

  void expect_formula(const Pair& y, const std::vector<double>& expected,
                      const std::vector<double>& bounds) {
    for (const bool is_reference : {true, false}) {
      SCOPED_TRACE(is_reference ? "plain loops" : GetParam());
      const std::vector<float> got = is_reference ? floats(y.host) : result(y);
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], expected[i], bounds[i]) << "element " << i << " of " << got.size();
      }
    }
  }

  [[nodiscard]] bool on_tensor_cores() const { return GetParam() == "cuda"; }
};

struct W8A8Shape {
  int64_t rows, outputs, columns;
};
// One and few rows as in decoding, tiles with a rest in every direction, columns that end inside a
// group, and those that no tensor-core kernel takes.
constexpr W8A8Shape kShapes[] = {{1, 256, 384},  {3, 130, 272},  {16, 384, 512},  {17, 64, 128},
                                 {64, 200, 640}, {70, 260, 400}, {131, 388, 256}, {5, 37, 61}};

TEST_P(W8A8, LinearAndLinearAddAreTheFormula) {
  for (const W8A8Shape& c : kShapes) {
    for (const DType in : {DType::bf16, DType::f32}) {
      for (const DType out : {DType::bf16, DType::f32}) {
        SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.outputs << " x " << c.columns
                                          << (in == DType::f32 ? " f32" : " bf16")
                                          << (out == DType::f32 ? " to f32" : " to bf16"));
        const LinearPart part = linear_part(DType::f8_e4m3, c.outputs, c.columns, true);
        const Pair x = uneven(in, c.rows, c.columns);
        const Pair y = poisoned(out, {c.rows, c.outputs});
        const Pair sum = random(out, {c.rows, c.outputs});
        const std::vector<float> before = floats(sum.host);
        const Room q = room(c.rows, c.columns);
        run([&](Backend& b, auto at) {
          const LinearWeight weight = weight_of(b, {part}, LinearLayout::plain);
          const QuantizedActivations quantized{at(q.codes), at(q.scales)};
          b.linear(at(x), weight, at(y), quantized);
          b.linear_add(at(x), weight, at(sum), quantized);
        });
        const Rounded values = rounded(floats(x.host), c.columns);
        std::vector<double> expected, added, bounds;
        for (int64_t t = 0; t < c.rows; ++t) {
          for (int64_t n = 0; n < c.outputs; ++n) {
            Sum s = formula(values, part, t, n);
            s.value += part.bias.data<float>()[n];
            const float old = before[static_cast<size_t>(t * c.outputs + n)];
            s.magnitude += std::fabs(part.bias.data<float>()[n]) + std::fabs(old);
            expected.push_back(s.value);
            added.push_back(s.value + old);
            s.value = std::fabs(s.value) + std::fabs(old);
            bounds.push_back(bound(s, c.columns, out, on_tensor_cores()));
          }
        }
        expect_formula(y, expected, bounds);
        expect_formula(sum, added, bounds);
      }
    }
  }
}

TEST_P(W8A8, TheCodesAndScalesOfXAreTheSameBits) {
  const Pair x = uneven(DType::bf16, 67, 1000);
  const Pair y = poisoned(DType::f32, {67, 16});
  const LinearPart part = linear_part(DType::f8_e4m3, 16, 1000, false);
  const Room q = room(67, 1000);
  run([&](Backend& b, auto at) {
    b.linear(at(x), weight_of(b, {part}, LinearLayout::plain), at(y), {at(q.codes), at(q.scales)});
  });
  std::vector<uint8_t> codes(static_cast<size_t>(q.codes.host.num_bytes()));
  backend_->download(q.codes.device, std::as_writable_bytes(std::span(codes)));
  const std::vector<float> scales = result(q.scales);
  for (int64_t t = 0; t < 67; ++t) {
    for (int64_t k = 0; k < 1000; ++k) {
      const int64_t i = t * q.codes.host.size(1) + k;
      ASSERT_EQ(codes[static_cast<size_t>(i)], q.codes.host.data<Float8E4M3>()[i].bits)
          << "row " << t << ", column " << k;
    }
    for (int64_t group = 0; group < 8; ++group) {
      const int64_t i = group * q.scales.host.size(1) + t;
      ASSERT_EQ(scales[static_cast<size_t>(i)], q.scales.host.data<float>()[i])
          << "row " << t << ", group " << group;
    }
  }
}

TEST_P(W8A8, SiluMulTakesBothHalvesOfTheFormula) {
  for (const int64_t rows : {1, 40, 150}) {
    SCOPED_TRACE(rows);
    constexpr int64_t kWidth = 256;
    constexpr int64_t kColumns = 384;
    const std::vector<LinearPart> parts = {linear_part(DType::f8_e4m3, kWidth, kColumns, false),
                                           linear_part(DType::f8_e4m3, kWidth, kColumns, false)};
    const Pair x = random(DType::bf16, {rows, kColumns});
    const Pair scratch = poisoned(DType::bf16, {rows, 2 * kWidth});
    const Pair y = poisoned(DType::bf16, {rows, kWidth});
    const Room q = room(rows, kColumns);
    run([&](Backend& b, auto at) {
      b.linear_silu_mul(at(x), weight_of(b, parts, LinearLayout::gate_up), at(scratch), at(y),
                        {at(q.codes), at(q.scales)});
    });
    const Rounded values = rounded(floats(x.host), kColumns);
    std::vector<double> expected, bounds;
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t n = 0; n < kWidth; ++n) {
        const Sum gate = formula(values, parts[0], t, n);
        const Sum up = formula(values, parts[1], t, n);
        expected.push_back(gate.value / (1 + std::exp(-gate.value)) * up.value);
        // silu is no steeper than 1.1, and no larger than its argument; both factors may have been
        // rounded to bf16 on their way.
        const double gate_bound = bound(gate, kColumns, DType::bf16, on_tensor_cores());
        const double up_bound = bound(up, kColumns, DType::bf16, on_tensor_cores());
        bounds.push_back(1.1 * gate_bound * (std::fabs(up.value) + up_bound) +
                         std::fabs(gate.value) * up_bound + std::fabs(expected.back()) * 0x1p-8);
      }
    }
    expect_formula(y, expected, bounds);
  }
}

// Only a product this large is cut into the largest tiles of a card: too slow for the plain loops
// where no card needs them.
TEST_P(W8A8, TheLargestTilesGiveTheReferencesSums) {
  if (!on_tensor_cores()) GTEST_SKIP() << "the CPU has no tiles of this kind";
  constexpr int64_t kRows = 1501;
  constexpr int64_t kWidth = 768;
  constexpr int64_t kColumns = 272;
  const std::vector<LinearPart> parts = {linear_part(DType::f8_e4m3, kWidth, kColumns, false),
                                         linear_part(DType::f8_e4m3, kWidth, kColumns, false)};
  const LinearPart part = linear_part(DType::f8_e4m3, 2 * kWidth - 20, kColumns, true);
  const Pair x = uneven(DType::bf16, kRows, kColumns);
  const Pair unit = random(DType::bf16, {kRows, kColumns});
  const Pair sum = random(DType::f32, {kRows, 2 * kWidth - 20});
  const Pair scratch = poisoned(DType::bf16, {kRows, 2 * kWidth});
  const Pair gated = poisoned(DType::bf16, {kRows, kWidth});
  const Room q = room(kRows, kColumns);
  run([&](Backend& b, auto at) {
    const QuantizedActivations quantized{at(q.codes), at(q.scales)};
    b.linear_add(at(x), weight_of(b, {part}, LinearLayout::plain), at(sum), quantized);
    b.linear_silu_mul(at(unit), weight_of(b, parts, LinearLayout::gate_up), at(scratch), at(gated),
                      quantized);
  });
  // The bound of one sum, as a share of the largest: 8 steps of 2^-13 of the terms' sizes, of which
  // a row of 272 terms has about sqrt(272) times its sum.
  expect_close(sum, 8 * 0x1p-13 * std::sqrt(272.0));
  // Both factors of the reference were rounded to bf16.
  expect_close(gated, 2 * 8 * 0x1p-13 * std::sqrt(272.0) + 3 * 0x1p-8);
}

TEST_P(W8A8, WeightsThatAreNotFp8SeeXAsItIs) {
  const LinearPart part = linear_part(DType::bf16, 96, 256, true);
  const Pair x = random(DType::bf16, {33, 256});
  const Pair plain = poisoned(DType::f32, {33, 96});
  const Pair with_room = poisoned(DType::f32, {33, 96});
  const Room q = room(33, 256);
  run([&](Backend& b, auto at) {
    const LinearWeight weight = weight_of(b, {part}, LinearLayout::plain);
    b.linear(at(x), weight, at(plain));
    b.linear(at(x), weight, at(with_room), {at(q.codes), at(q.scales)});
  });
  EXPECT_EQ(floats(plain.host), floats(with_room.host));
  EXPECT_EQ(result(plain), result(with_room));
}

TEST_P(W8A8, NaNAndInfinityInXAreNotHidden) {
  std::vector<float> values(3 * 256, 1.0F);
  values[5] = NAN;
  values[256 + 200] = -std::numeric_limits<float>::infinity();
  const Pair x = pair_of(values, DType::bf16, {3, 256});
  const LinearPart part = linear_part(DType::f8_e4m3, 128, 256, false);
  const Pair y = poisoned(DType::f32, {3, 128});
  const Room q = room(3, 256);
  run([&](Backend& b, auto at) {
    b.linear(at(x), weight_of(b, {part}, LinearLayout::plain), at(y), {at(q.codes), at(q.scales)});
  });
  for (const std::vector<float>& got : {floats(y.host), result(y)}) {
    for (size_t n = 0; n < 128; ++n) {
      EXPECT_FALSE(std::isfinite(got[n]));
      EXPECT_FALSE(std::isfinite(got[128 + n]));
      EXPECT_TRUE(std::isfinite(got[256 + n]));
    }
  }
}

TEST_P(W8A8, TooLittleRoomIsNamed) {
  const LinearPart part = linear_part(DType::f8_e4m3, 128, 256, false);
  const Pair x = random(DType::bf16, {4, 256});
  const Pair y = poisoned(DType::f32, {4, 128});
  const Room q = room(3, 256);
  const LinearWeight weight = weight_of(*backend_, {part}, LinearLayout::plain);
  try {
    backend_->linear(x.device, weight, y.device, {q.codes.device, q.scales.device});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no room"), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, W8A8, ::testing::Values("cpu", "cuda"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace glimpse::testing
