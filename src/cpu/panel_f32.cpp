// Many activation rows times a packed panel of weight rows, in f32: each x is broadcast to several
// vectors of weight rows, so no sum is ever added across lanes. The twin for bf16 is in
// linear_avx512_bf16.cpp.
#include "cpu/kernels.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/panel_f32.cpp"
// foreach_target.h must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace glimpse::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes: a panel is a whole number of vectors on every processor.
using Lanes = hn::CappedTag<float, 16>;

// kX x kVectors sums: 24 of 32 registers, or 12 of 16.
template <int kX, int kVectors>
HWY_INLINE void panel_tile(const float* x, int64_t x_stride, const float* panel, int64_t columns,
                           float* sums, const PanelSums& to) {
  const Lanes d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<Lanes> acc[kX][kVectors];
  for (int i = 0; i < kX; ++i) {
    for (int j = 0; j < kVectors; ++j) acc[i][j] = hn::Zero(d);
  }
  for (int64_t k = 0; k < columns; ++k) {
    hn::Vec<Lanes> b[kVectors];
    for (int j = 0; j < kVectors; ++j) b[j] = hn::LoadU(d, panel + k * kPanelRows + j * lanes);
    for (int i = 0; i < kX; ++i) {
      const auto a = hn::Set(d, x[i * x_stride + k]);
      for (int j = 0; j < kVectors; ++j) acc[i][j] = hn::MulAdd(a, b[j], acc[i][j]);
    }
  }
  const auto factor = hn::Set(d, to.scale);
  for (int i = 0; i < kX; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      float* at = sums + i * to.stride + j * lanes;
      const auto before = to.first ? hn::Zero(d) : hn::LoadU(d, at);
      hn::StoreU(hn::MulAdd(acc[i][j], factor, before), d, at);
    }
  }
}

template <int kX>
HWY_INLINE void panel_rows(const float* x, int64_t x_stride, const float* panel, int64_t columns,
                           float* sums, const PanelSums& to) {
  constexpr int kVectors = HWY_TARGET <= HWY_AVX3 ? 4 : 2;
  const auto lanes = static_cast<int64_t>(hn::Lanes(Lanes()));
  int64_t n = 0;
  for (; n + (kVectors - 1) * lanes < to.count; n += kVectors * lanes) {
    panel_tile<kX, kVectors>(x, x_stride, panel + n, columns, sums + n, to);
  }
  for (; n < to.count; n += lanes) {
    panel_tile<kX, 1>(x, x_stride, panel + n, columns, sums + n, to);
  }
}

void multiply_f32_panel(const float* x, int64_t x_stride, int64_t num_x, const float* panel,
                        int64_t columns, const PanelSums& to) {
  int64_t t = 0;
  for (; t + 6 <= num_x; t += 6) {
    panel_rows<6>(x + t * x_stride, x_stride, panel, columns, to.sums + t * to.stride, to);
  }
  for (; t + 2 <= num_x; t += 2) {
    panel_rows<2>(x + t * x_stride, x_stride, panel, columns, to.sums + t * to.stride, to);
  }
  if (t < num_x) {
    panel_rows<1>(x + t * x_stride, x_stride, panel, columns, to.sums + t * to.stride, to);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace glimpse::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse::cpu {

HWY_EXPORT(multiply_f32_panel);

void pack_panel(const float* rows, int64_t stride, int64_t num_rows, int64_t columns,
                float* panel) {
  if (has_bf16_dot()) return pack_panel_avx512(rows, stride, num_rows, columns, panel);
  for (int64_t k = 0; k < columns; ++k) {
    float* to = panel + k * kPanelRows;
    for (int64_t n = 0; n < num_rows; ++n) to[n] = rows[n * stride + k];
    for (int64_t n = num_rows; n < kPanelRows; ++n) to[n] = 0.0F;
  }
}

void pack_columns(const float* rows, int64_t stride, int64_t num_rows, int64_t columns,
                  float* panel) {
  for (int64_t k = 0; k < num_rows; ++k) {
    float* to = panel + k * kPanelRows;
    std::copy_n(rows + k * stride, columns, to);
    std::fill(to + columns, to + kPanelRows, 0.0F);
  }
}

void multiply_panel(const float* x, int64_t x_stride, int64_t num_x, const float* panel,
                    int64_t columns, const PanelSums& to) {
  HWY_DYNAMIC_DISPATCH(multiply_f32_panel)(x, x_stride, num_x, panel, columns, to);
}

}  // namespace glimpse::cpu
#endif  // HWY_ONCE
