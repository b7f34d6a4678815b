// The reference itself against numbers worked out by hand or with another program: the anchor of
// everything that is compared with it.
#include <cmath>

#include <gtest/gtest.h>

#include "cpu/cpu_backend.h"

namespace glimpse {
namespace {

Tensor view(std::vector<float>& values, std::initializer_list<int64_t> shape) {
  return {values.data(), DType::f32, Device::cpu, shape};
}

TEST(Reference, GeluKindsDifferWhereTheyShould) {
  const auto backend = create_reference_backend();
  std::vector<float> x = {1.0F, -2.0F, 0.5F};
  std::vector<float> tanh_form(3);
  std::vector<float> erf_form(3);
  backend->gelu(view(x, {1, 3}), GeluKind::tanh_approximation, view(tanh_form, {1, 3}));
  backend->gelu(view(x, {1, 3}), GeluKind::exact_erf, view(erf_form, {1, 3}));
  EXPECT_NEAR(tanh_form[0], 0.841192, 1e-6);
  EXPECT_NEAR(erf_form[0], 0.841345, 1e-6);
  EXPECT_NEAR(tanh_form[1], -0.045402, 1e-6);
  EXPECT_NEAR(erf_form[1], -0.045500, 1e-6);
}

TEST(Reference, RmsNormDividesByTheRootOfTheMeanSquare) {
  const auto backend = create_reference_backend();
  std::vector<float> x = {3.0F, 4.0F};
  std::vector<float> weight = {1.0F, 2.0F};
  backend->rms_norm(view(x, {1, 2}), view(weight, {2}), 0.0F, view(x, {1, 2}));
  EXPECT_NEAR(x[0], 3.0 / std::sqrt(12.5), 1e-6);
  EXPECT_NEAR(x[1], 8.0 / std::sqrt(12.5), 1e-6);
}

TEST(Reference, LayerNormTakesTheMeanAway) {
  const auto backend = create_reference_backend();
  std::vector<float> x = {1.0F, 3.0F};
  std::vector<float> weight = {2.0F, 2.0F};
  std::vector<float> bias = {0.5F, 0.5F};
  backend->layer_norm(view(x, {1, 2}), view(weight, {2}), view(bias, {2}), 0.0F, view(x, {1, 2}));
  EXPECT_NEAR(x[0], -1.5, 1e-6);
  EXPECT_NEAR(x[1], 2.5, 1e-6);
}

TEST(Reference, RotatePairsTheHalvesOfAHead) {
  const auto backend = create_reference_backend();
  std::vector<float> x = {1.0F, 2.0F, 3.0F, 4.0F};
  std::vector<float> cosines = {0.0F, 1.0F};
  std::vector<float> sines = {1.0F, 0.0F};
  backend->rotate(view(x, {1, 1, 4}), view(cosines, {1, 2}), view(sines, {1, 2}),
                  view(x, {1, 1, 4}));
  EXPECT_EQ(x, (std::vector<float>{-3.0F, 2.0F, 1.0F, 4.0F}));
}

TEST(Reference, WrongShapesAreNamed) {
  const auto backend = create_reference_backend();
  std::vector<float> x(6);
  std::vector<float> weight(2);
  try {
    backend->rms_norm(view(x, {2, 3}), view(weight, {2}), 0.0F, view(x, {2, 3}));
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::internal);
    EXPECT_NE(std::string(error.what()).find("rms_norm: weight"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace glimpse
