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

/// sums[t, n] = sum over k of x[t, k] * w[n, k], all f32. Strides in elements. Any sizes.
void multiply_f32(const float* x, int64_t x_stride, int64_t num_x, const float* w, int64_t w_stride,
                  int64_t num_w, int64_t columns, float* sums, int64_t sums_stride);

/// Weight rows side by side in a packed panel: four vectors of 16, times six activation rows.
inline constexpr int64_t kPanelRows = 64;
/// panel [columns, kPanelRows] from `num_rows` rows; absent rows become 0.
void pack_panel(const float* rows, int64_t stride, int64_t num_rows, int64_t columns, float* panel);
/// sums [num_x, kPanelRows] = scale * (x times the panel), plus what is there unless `first`.
void multiply_panel(const float* x, int64_t x_stride, int64_t num_x, const float* panel,
                    int64_t columns, float scale, bool first, float* sums);

/// out = softmax(scale * scores[0..count)), and zeros from there to `padded`.
void softmax(float* scores, int64_t count, int64_t padded, float scale);
/// sums[i] += weight * x[i].
void add_scaled(const float* x, float weight, int64_t count, float* sums);
float dot(const float* x, const float* y, int64_t count);

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
/// sums[t, n] = sum over k of x[t, k] * w[n, k]. Needs has_bf16_dot().
void multiply_bf16(const BFloat16* x, int64_t x_stride, int64_t num_x, const BFloat16* w,
                   int64_t w_stride, int64_t num_w, int64_t columns, float* sums,
                   int64_t sums_stride);
/// One weight row of FP8 times up to 4 activation rows: sums[t] = sum of x[t, k] * w[k], each 128
/// columns multiplied by their scale. `x` comes from interleave_for_fp8(). Needs has_bf16_dot().
void multiply_fp8_row(const BFloat16* x, int64_t x_stride, int64_t num_x, const Float8E4M3* w,
                      const float* scales, int64_t columns, float* sums);
/// Columns in the order in which multiply_fp8_row() unpacks bytes, padded with zeros to a multiple
/// of 64.
void interleave_for_fp8(const BFloat16* x, int64_t columns, BFloat16* out);
/// FP8 as bf16, which holds it exactly; the scale is multiply_panel()'s.
void widen_fp8_row(const Float8E4M3* row, int64_t columns, BFloat16* out);
/// panel [columns / 2, kPanelRows, 2] from `num_rows` rows; absent rows and columns become 0.
void pack_panel(const BFloat16* rows, int64_t stride, int64_t num_rows, int64_t columns,
                BFloat16* panel);
void multiply_panel(const BFloat16* x, int64_t x_stride, int64_t num_x, const BFloat16* panel,
                    int64_t columns, float scale, bool first, float* sums);

}  // namespace glimpse::cpu
