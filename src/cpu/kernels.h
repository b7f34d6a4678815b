// The vector kernels under the CPU backend: raw pointers and sizes, no tensors, no threads. Each is
// compiled for several instruction sets and chosen when first called.
#pragma once

#include <cstdint>

#include "base/float_formats.h"

namespace glimpse::cpu {

/// Name of the instruction set the kernels run on, for --stats: "AVX3_ZEN4", "AVX2", ...
[[nodiscard]] const char* instruction_set();

/// Rows of a weight panel and how they are read: out[r, k] = w[r, k] * scales[k / 128] in f32.
/// `scales` is null for formats without. Rows are `stride` elements apart.
void widen_row(const float* row, const float* scales, int64_t columns, float* out);
void widen_row(const Float16* row, const float* scales, int64_t columns, float* out);
void widen_row(const BFloat16* row, const float* scales, int64_t columns, float* out);
void widen_row(const Float8E4M3* row, const float* scales, int64_t columns, float* out);
/// f32 to bf16, rounded to nearest even.
void narrow_row(const float* row, int64_t columns, BFloat16* out);

/// sums[t] = sum over k of x[t, k] * (w[k] * scales[k / 128]) for up to 4 rows of x, all in f32.
/// The weight row is widened in registers and read once. `scales` is null for formats without.
void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const float* w,
                  const float* scales, int64_t columns, float* sums);
void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const Float16* w,
                  const float* scales, int64_t columns, float* sums);
void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const BFloat16* w,
                  const float* scales, int64_t columns, float* sums);
void multiply_row(const float* x, int64_t x_stride, int64_t num_x, const Float8E4M3* w,
                  const float* scales, int64_t columns, float* sums);
/// sums[t, i] += sum over r of weights[t, r] * rows[r, i].
///   weights [num_x, num_rows], `stride` apart   rows [num_rows, dim]   sums [num_x, dim]
void mix_rows(const float* weights, int64_t stride, int64_t num_x, const float* rows,
              int64_t num_rows, int64_t dim, float* sums);
void mix_rows(const float* weights, int64_t stride, int64_t num_x, const BFloat16* rows,
              int64_t num_rows, int64_t dim, float* sums);
void mix_rows(const float* weights, int64_t stride, int64_t num_x, const Float8E4M3* rows,
              int64_t num_rows, int64_t dim, float* sums);
/// to = from + bias (where there is one) + to (where `add`).
void finish_row(const float* from, const float* bias, bool add, int64_t count, float* to);

/// Weight rows side by side in a packed panel: four vectors of 16, times six activation rows.
inline constexpr int64_t kPanelRows = 64;
/// panel [columns, kPanelRows] from `num_rows` rows; absent rows become 0.
void pack_panel(const float* rows, int64_t stride, int64_t num_rows, int64_t columns, float* panel);
/// The panel of the transpose: panel [num_rows, kPanelRows] from `columns` columns of the rows.
void pack_columns(const float* rows, int64_t stride, int64_t num_rows, int64_t columns,
                  float* panel);

/// Where multiply_panel() leaves sums: at least `count` of kPanelRows columns, rounded up to whole
/// vectors of 16.
struct PanelSums {
  float* sums = nullptr;
  int64_t stride = kPanelRows;
  int64_t count = kPanelRows;
  float scale = 1.0F;
  bool first = true;  // overwrite what is there; otherwise add to it
};
/// sums [num_x, count] = scale * (x [num_x, columns] times the panel), or += that.
void multiply_panel(const float* x, int64_t x_stride, int64_t num_x, const float* panel,
                    int64_t columns, const PanelSums& to);

/// out = softmax(scale * scores[0..count)), and zeros from there to `padded`.
void softmax(float* scores, int64_t count, int64_t padded, float scale);
/// log(sum of exp(x)), sums in double over vectors of float.
[[nodiscard]] float log_sum_exp(const float* x, int64_t count);

/// x[i] = silu(gate[i]) * up[i].
void silu_mul(const float* gate, const float* up, int64_t count, float* out);
void gelu_tanh(float* x, int64_t count);
void gelu_erf(float* x, int64_t count);
/// out = x * weight / sqrt(mean(x^2) + epsilon).
void rms_norm(const float* x, const float* weight, float epsilon, int64_t count, float* out);
void layer_norm(const float* x, const float* weight, const float* bias, float epsilon,
                int64_t count, float* out);

// ---- bf16 dot products (linear_avx512_bf16.cpp) ---------------------------------------------

/// Whether this processor multiplies bf16 directly. Without it, f32 products of widened values
/// give the same sums up to their order.
[[nodiscard]] bool has_bf16_dot();
/// sums[t] = sum over k of x[t, k] * w[k] for up to 4 rows of x. Needs has_bf16_dot().
void multiply_bf16_row(const BFloat16* x, int64_t x_stride, int64_t num_x, const BFloat16* w,
                       int64_t columns, float* sums);
/// One weight row of FP8 times up to 4 activation rows: sums[t] = sum of x[t, k] * w[k], each 128
/// columns multiplied by their scale. `x` comes from interleave_for_fp8(). Needs has_bf16_dot().
void multiply_fp8_row(const BFloat16* x, int64_t x_stride, int64_t num_x, const Float8E4M3* w,
                      const float* scales, int64_t columns, float* sums);
/// Columns in the order in which multiply_fp8_row() unpacks bytes, padded with zeros to a multiple
/// of 64.
void interleave_for_fp8(const BFloat16* x, int64_t columns, BFloat16* out);
/// panel [columns / 2, kPanelRows, 2] from `num_rows` rows; absent rows and columns become 0.
void pack_panel(const BFloat16* rows, int64_t stride, int64_t num_rows, int64_t columns,
                BFloat16* panel);
/// The same from FP8, which bf16 holds exactly; the scale is multiply_panel()'s.
void pack_panel(const Float8E4M3* rows, int64_t stride, int64_t num_rows, int64_t columns,
                BFloat16* panel);
/// panel [num_rows / 2, kPanelRows, 2] from `columns` columns of the rows.
void pack_columns(const BFloat16* rows, int64_t stride, int64_t num_rows, int64_t columns,
                  BFloat16* panel);
void multiply_panel(const BFloat16* x, int64_t x_stride, int64_t num_x, const BFloat16* panel,
                    int64_t columns, const PanelSums& to);
/// 16 x 16 floats at a time: the same as the pack_panel() for float, quicker.
void pack_panel_avx512(const float* rows, int64_t stride, int64_t num_rows, int64_t columns,
                       float* panel);

}  // namespace glimpse::cpu
