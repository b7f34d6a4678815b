// Which products the streamed kernel takes: needs no GPU.
#include <gtest/gtest.h>

#include <cstdint>

#include "cuda/gemv.h"

namespace glimpse::cuda {
namespace {

GemvArguments product(int rows, int64_t outputs, int64_t columns, bool weight_is_f8) {
  GemvArguments a;
  a.x_stride = columns;
  a.rows = rows;
  a.outputs = outputs;
  a.columns = columns;
  a.weight_is_f8 = weight_is_f8;
  return a;
}

TEST(GemvShape, theHeadsOf2B4BAnd8BAreTakenWithUpToEightRows) {
  for (const int64_t hidden_size : {2048, 2560, 4096}) {
    for (int rows = 1; rows <= kGemvRows; ++rows) {
      EXPECT_TRUE(gemv_supports(product(rows, 151936, hidden_size, false)))
          << hidden_size << " rows " << rows;
    }
  }
  EXPECT_FALSE(gemv_supports(product(kGemvRows + 1, 151936, 2048, false)));
}

TEST(GemvShape, stagedRowsAndOneUnitOfEveryWarpMustFitIntoWhatEveryCardHas) {
  EXPECT_TRUE(gemv_supports(product(7, 151936, 5120, false)));
  EXPECT_FALSE(gemv_supports(product(8, 151936, 5120, false)));
  EXPECT_TRUE(gemv_supports(product(3, 2560, 9728, true)));
  EXPECT_FALSE(gemv_supports(product(4, 2560, 9728, true)));
}

TEST(GemvShape, rowsOfWeightsMustBeWholeUnitsAndRowsOfActivationsAligned) {
  EXPECT_TRUE(gemv_supports(product(1, 64, 192, false)));
  EXPECT_FALSE(gemv_supports(product(1, 64, 192, true)));
  GemvArguments a = product(2, 64, 256, false);
  a.x_stride = 264;
  EXPECT_TRUE(gemv_supports(a));
  a.x_stride = 260;
  EXPECT_FALSE(gemv_supports(a));
}

}  // namespace
}  // namespace glimpse::cuda
