// One row of weights, or of the KV cache, with few rows of activations, in f32: read once where it
// lies and widened in registers. Many rows: panel_f32.cpp.
#include "cpu/kernels.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rows_f32.cpp"
// foreach_target.h must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/widen-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace glimpse::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One weight row, widened in registers, times kX rows of x: kUnroll vectors at a time, so that
// sums wait for no sum before them.
template <bool kScaled, int kX, typename W>
HWY_INLINE void multiply_widened(const float* x, int64_t x_stride, const W* w, const float* scales,
                                 int64_t columns, float* sums) {
  const Floats d;
  constexpr int kUnroll = 4;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector acc[kX][kUnroll];
  for (int t = 0; t < kX; ++t) {
    for (int j = 0; j < kUnroll; ++j) acc[t][j] = hn::Zero(d);
  }
  float tails[kX] = {};
  const int64_t block = kScaled ? 128 : columns;
  for (int64_t first = 0; first < columns; first += block) {
    const int64_t last = std::min(first + block, columns);
    const float scale = kScaled ? scales[first / 128] : 1.0F;
    const Vector factor = hn::Set(d, scale);
    int64_t k = first;
    for (; k + kUnroll * lanes <= last; k += kUnroll * lanes) {
      for (int j = 0; j < kUnroll; ++j) {
        Vector b = widen(d, w + k + j * lanes);
        if (kScaled) b = hn::Mul(b, factor);
        for (int t = 0; t < kX; ++t) {
          acc[t][j] = hn::MulAdd(hn::LoadU(d, x + t * x_stride + k + j * lanes), b, acc[t][j]);
        }
      }
    }
    for (; k + lanes <= last; k += lanes) {
      Vector b = widen(d, w + k);
      if (kScaled) b = hn::Mul(b, factor);
      for (int t = 0; t < kX; ++t) {
        acc[t][0] = hn::MulAdd(hn::LoadU(d, x + t * x_stride + k), b, acc[t][0]);
      }
    }
    for (; k < last; ++k) {
      const float b = to_float(w[k]) * scale;
      for (int t = 0; t < kX; ++t) tails[t] += x[t * x_stride + k] * b;
    }
  }
  for (int t = 0; t < kX; ++t) {
    const Vector sum = hn::Add(hn::Add(acc[t][0], acc[t][1]), hn::Add(acc[t][2], acc[t][3]));
    sums[t] = hn::GetLane(hn::SumOfLanes(d, sum)) + tails[t];
  }
}

template <int kX, typename W>
HWY_INLINE void multiply_any(const float* x, int64_t x_stride, const W* w, const float* scales,
                             int64_t columns, float* sums) {
  if (scales == nullptr) {
    multiply_widened<false, kX>(x, x_stride, w, scales, columns, sums);
  } else {
    multiply_widened<true, kX>(x, x_stride, w, scales, columns, sums);
  }
}

template <typename W>
HWY_INLINE void multiply_few(const float* x, int64_t x_stride, int64_t num_x, const W* w,
                             const float* scales, int64_t columns, float* sums) {
  switch (num_x) {
    case 1:
      return multiply_any<1>(x, x_stride, w, scales, columns, sums);
    case 2:
      return multiply_any<2>(x, x_stride, w, scales, columns, sums);
    case 3:
      return multiply_any<3>(x, x_stride, w, scales, columns, sums);
    default:
      return multiply_any<4>(x, x_stride, w, scales, columns, sums);
  }
}

void multiply_f32_row(const float* x, int64_t x_stride, int64_t num_x, const float* w,
                      const float* s, int64_t columns, float* sums) {
  multiply_few(x, x_stride, num_x, w, s, columns, sums);
}
void multiply_f16_row(const float* x, int64_t x_stride, int64_t num_x, const Float16* w,
                      const float* s, int64_t columns, float* sums) {
  multiply_few(x, x_stride, num_x, w, s, columns, sums);
}
void multiply_bf16_row(const float* x, int64_t x_stride, int64_t num_x, const BFloat16* w,
                       const float* s, int64_t columns, float* sums) {
  multiply_few(x, x_stride, num_x, w, s, columns, sums);
}
void multiply_f8_row(const float* x, int64_t x_stride, int64_t num_x, const Float8E4M3* w,
                     const float* s, int64_t columns, float* sums) {
  multiply_few(x, x_stride, num_x, w, s, columns, sums);
}

// kX x kVectors columns of sums in registers while the rows pass by.
template <int kX, int kVectors, typename W>
HWY_INLINE void mix_columns(const float* weights, int64_t stride, const W* rows, int64_t num_rows,
                            int64_t dim, float* sums) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector acc[kX][kVectors];
  for (int t = 0; t < kX; ++t) {
    for (int j = 0; j < kVectors; ++j) acc[t][j] = hn::LoadU(d, sums + t * dim + j * lanes);
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    Vector b[kVectors];
    for (int j = 0; j < kVectors; ++j) b[j] = widen(d, rows + r * dim + j * lanes);
    for (int t = 0; t < kX; ++t) {
      const Vector a = hn::Set(d, weights[t * stride + r]);
      for (int j = 0; j < kVectors; ++j) acc[t][j] = hn::MulAdd(a, b[j], acc[t][j]);
    }
  }
  for (int t = 0; t < kX; ++t) {
    for (int j = 0; j < kVectors; ++j) hn::StoreU(acc[t][j], d, sums + t * dim + j * lanes);
  }
}

template <int kX, typename W>
HWY_INLINE void mix(const float* weights, int64_t stride, const W* rows, int64_t num_rows,
                    int64_t dim, float* sums) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Floats()));
  int64_t i = 0;
  for (; i + 4 * lanes <= dim; i += 4 * lanes) {
    mix_columns<kX, 4>(weights, stride, rows + i, num_rows, dim, sums + i);
  }
  for (; i + lanes <= dim; i += lanes) {
    mix_columns<kX, 1>(weights, stride, rows + i, num_rows, dim, sums + i);
  }
  for (; i < dim; ++i) {
    for (int t = 0; t < kX; ++t) {
      float sum = sums[t * dim + i];
      for (int64_t r = 0; r < num_rows; ++r) {
        sum += weights[t * stride + r] * to_float(rows[r * dim + i]);
      }
      sums[t * dim + i] = sum;
    }
  }
}

template <typename W>
HWY_INLINE void mix_any(const float* weights, int64_t stride, int64_t num_x, const W* rows,
                        int64_t num_rows, int64_t dim, float* sums) {
  int64_t t = 0;
  for (; t + 4 <= num_x; t += 4) {
    mix<4>(weights + t * stride, stride, rows, num_rows, dim, sums + t * dim);
  }
  for (; t + 2 <= num_x; t += 2) {
    mix<2>(weights + t * stride, stride, rows, num_rows, dim, sums + t * dim);
  }
  if (t < num_x) mix<1>(weights + t * stride, stride, rows, num_rows, dim, sums + t * dim);
}

void mix_f32_rows(const float* weights, int64_t stride, int64_t num_x, const float* rows,
                  int64_t num_rows, int64_t dim, float* sums) {
  mix_any(weights, stride, num_x, rows, num_rows, dim, sums);
}
void mix_bf16_rows(const float* weights, int64_t stride, int64_t num_x, const BFloat16* rows,
                   int64_t num_rows, int64_t dim, float* sums) {
  mix_any(weights, stride, num_x, rows, num_rows, dim, sums);
}
void mix_f8_rows(const float* weights, int64_t stride, int64_t num_x, const Float8E4M3* rows,
                 int64_t num_rows, int64_t dim, float* sums) {
  mix_any(weights, stride, num_x, rows, num_rows, dim, sums);
}

}  // namespace HWY_NAMESPACE
}  // namespace glimpse::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse::cpu {

HWY_EXPORT(multiply_f32_row);
HWY_EXPORT(multiply_f16_row);
HWY_EXPORT(multiply_bf16_row);
HWY_EXPORT(multiply_f8_row);
HWY_EXPORT(mix_f32_rows);
HWY_EXPORT(mix_bf16_rows);
HWY_EXPORT(mix_f8_rows);

void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const float* w,
                  const float* scales, int64_t columns, float* sums) {
  HWY_DYNAMIC_DISPATCH(multiply_f32_row)
  (x, x_stride, num_x, w, scales, columns, sums);
}
void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const Float16* w,
                  const float* scales, int64_t columns, float* sums) {
  HWY_DYNAMIC_DISPATCH(multiply_f16_row)
  (x, x_stride, num_x, w, scales, columns, sums);
}
void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const BFloat16* w,
                  const float* scales, int64_t columns, float* sums) {
  HWY_DYNAMIC_DISPATCH(multiply_bf16_row)
  (x, x_stride, num_x, w, scales, columns, sums);
}
void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const Float8E4M3* w,
                  const float* scales, int64_t columns, float* sums) {
  HWY_DYNAMIC_DISPATCH(multiply_f8_row)
  (x, x_stride, num_x, w, scales, columns, sums);
}
void mix_rows(const float* weights, int64_t stride, int64_t num_x, const float* rows,
              int64_t num_rows, int64_t dim, float* sums) {
  HWY_DYNAMIC_DISPATCH(mix_f32_rows)
  (weights, stride, num_x, rows, num_rows, dim, sums);
}
void mix_rows(const float* weights, int64_t stride, int64_t num_x, const BFloat16* rows,
              int64_t num_rows, int64_t dim, float* sums) {
  HWY_DYNAMIC_DISPATCH(mix_bf16_rows)
  (weights, stride, num_x, rows, num_rows, dim, sums);
}
void mix_rows(const float* weights, int64_t stride, int64_t num_x, const Float8E4M3* rows,
              int64_t num_rows, int64_t dim, float* sums) {
  HWY_DYNAMIC_DISPATCH(mix_f8_rows)
  (weights, stride, num_x, rows, num_rows, dim, sums);
}

}  // namespace glimpse::cpu
#endif  // HWY_ONCE
