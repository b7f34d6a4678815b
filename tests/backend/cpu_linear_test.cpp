// What only the CPU's packed panels can get wrong: the scale of FP8 with many rows, odd numbers of
// columns, more activation rows than one block of sums.
#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "cpu/cpu_backend.h"

namespace glimpse {
namespace {

struct Fp8Weight {
  std::vector<Float8E4M3> codes;
  std::vector<float> scales;
  LinearWeight weight;

  Fp8Weight(int64_t outputs, int64_t columns, std::mt19937& random) {
    const int64_t scale_rows = (outputs + kScaleBlock - 1) / kScaleBlock;
    const int64_t scale_columns = (columns + kScaleBlock - 1) / kScaleBlock;
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < outputs * columns; ++i) codes.push_back(to_float8_e4m3(normal(random)));
    // Factors that bf16 cannot hold.
    for (int64_t i = 0; i < scale_rows * scale_columns; ++i) {
      scales.push_back(1.0F / static_cast<float>(3 + 2 * i));
    }
    LinearPart part;
    part.weight = Tensor(codes.data(), DType::f8_e4m3, Device::cpu, {outputs, columns});
    part.scales = Tensor(scales.data(), DType::f32, Device::cpu, {scale_rows, scale_columns});
    weight.parts = {part};
  }
};

TEST(CpuLinear, TheScaleOfFp8IsNotRoundedHoweverManyRowsThereAre) {
  std::mt19937 random(20261123);
  const Fp8Weight fp8(192, 256, random);
  const auto backend = create_cpu_backend(2);
  for (const int64_t rows : {1, 4, 5, 33, 200}) {
    SCOPED_TRACE(rows);
    // Row t is 1 in column t and 0 elsewhere: the product is the weight itself.
    std::vector<BFloat16> x(static_cast<size_t>(rows * 256), BFloat16{0});
    for (int64_t t = 0; t < rows; ++t) x[static_cast<size_t>(t * 257)] = to_bfloat16(1.0F);
    std::vector<float> out(static_cast<size_t>(rows * 192));
    backend->linear(Tensor(x.data(), DType::bf16, Device::cpu, {rows, 256}), fp8.weight,
                    Tensor(out.data(), DType::f32, Device::cpu, {rows, 192}));
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t n = 0; n < 192; ++n) {
        const float scale = fp8.scales[static_cast<size_t>(n / 128 * 2 + t / 128)];
        ASSERT_EQ(out[static_cast<size_t>(t * 192 + n)],
                  to_float(fp8.codes[static_cast<size_t>(n * 256 + t)]) * scale)
            << "row " << t << ", output " << n;
      }
    }
  }
}

TEST(CpuLinear, OddColumnsAndMoreRowsThanABlockGiveTheReferencesSums) {
  std::mt19937 random(7);
  const auto backend = create_cpu_backend(2);
  const auto reference = create_reference_backend();
  for (const int64_t columns : {1, 45, 301}) {
    const int64_t outputs = 70;
    const int64_t rows = 1031;
    const Fp8Weight fp8(outputs, columns, random);
    std::vector<BFloat16> x;
    std::vector<float> widened;
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * columns; ++i) {
      x.push_back(to_bfloat16(normal(random)));
      widened.push_back(to_float(x.back()));
    }
    std::vector<float> expected(static_cast<size_t>(rows * outputs));
    const Tensor exact(widened.data(), DType::f32, Device::cpu, {rows, columns});
    reference->linear(exact, fp8.weight,
                      Tensor(expected.data(), DType::f32, Device::cpu, {rows, outputs}));
    for (const Tensor& input :
         {exact, Tensor(x.data(), DType::bf16, Device::cpu, {rows, columns})}) {
      SCOPED_TRACE(input.describe());
      std::vector<float> out(expected.size(), NAN);
      backend->linear(input, fp8.weight,
                      Tensor(out.data(), DType::f32, Device::cpu, {rows, outputs}));
      // Terms are around 1/3 and sums are taken in another order: n half units in the last place
      // of a sum below 4 sqrt(n).
      const double n = static_cast<double>(columns);
      const double tolerance = n * 0x1p-24 * 4 * std::sqrt(n);
      for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], tolerance) << i;
    }
  }
}

}  // namespace
}  // namespace glimpse
