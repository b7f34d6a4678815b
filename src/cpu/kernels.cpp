// Highway compiles everything between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE once per
// instruction set; the functions at the end call the best one for this processor.
#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels.cpp"
// foreach_target.h must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
#include "cpu/widen-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace glimpse::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- widening ---------------------------------------------------------------------------------

template <typename W>
void widen_any(const W* row, const float* scales, int64_t columns, float* out) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t first = 0; first < columns; first += 128) {
    const int64_t last = std::min(first + 128, columns);
    const float scale = scales != nullptr ? scales[first / 128] : 1.0F;
    const Vector factor = hn::Set(d, scale);
    int64_t k = first;
    for (; k + lanes <= last; k += lanes)
      hn::StoreU(hn::Mul(widen(d, row + k), factor), d, out + k);
    for (; k < last; ++k) out[k] = to_float(row[k]) * scale;
  }
}

void widen_f32_row(const float* r, const float* s, int64_t n, float* o) {
  widen_any(r, s, n, o);
}
void widen_f16_row(const Float16* r, const float* s, int64_t n, float* o) {
  widen_any(r, s, n, o);
}
void widen_bf16_row(const BFloat16* r, const float* s, int64_t n, float* o) {
  widen_any(r, s, n, o);
}
void widen_f8_row(const Float8E4M3* r, const float* s, int64_t n, float* o) {
  widen_any(r, s, n, o);
}

void narrow_f32_row(const float* row, int64_t columns, BFloat16* out) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> d32;
  const hn::Rebind<uint16_t, Floats> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t k = 0;
  for (; k + lanes <= columns; k += lanes) {
    const auto bits = hn::BitCast(d32, hn::LoadU(d, row + k));
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1U));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFFU))));
    hn::StoreU(hn::TruncateTo(d16, rounded), d16, reinterpret_cast<uint16_t*>(out + k));
  }
  for (; k < columns; ++k) out[k] = to_bfloat16(row[k]);
}

// ---- elementwise ------------------------------------------------------------------------------

void finish_f32_row(const float* from, const float* bias, bool add, int64_t count, float* to) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Vector value = hn::LoadU(d, from + i);
    if (bias != nullptr) value = hn::Add(value, hn::LoadU(d, bias + i));
    if (add) value = hn::Add(value, hn::LoadU(d, to + i));
    hn::StoreU(value, d, to + i);
  }
  for (; i < count; ++i) {
    float value = from[i];
    if (bias != nullptr) value += bias[i];
    to[i] = add ? value + to[i] : value;
  }
}

void softmax_row(float* scores, int64_t count, int64_t padded, float scale) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector largest_lanes = hn::Set(d, scores[0]);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    largest_lanes = hn::Max(largest_lanes, hn::LoadU(d, scores + i));
  }
  float largest = hn::GetLane(hn::MaxOfLanes(d, largest_lanes));
  for (; i < count; ++i) largest = std::max(largest, scores[i]);
  Vector sum_lanes = hn::Zero(d);
  const Vector factor = hn::Set(d, scale);
  const Vector shift = hn::Set(d, largest);
  for (i = 0; i + lanes <= count; i += lanes) {
    const Vector e = hn::Exp(d, hn::Mul(hn::Sub(hn::LoadU(d, scores + i), shift), factor));
    sum_lanes = hn::Add(sum_lanes, e);
    hn::StoreU(e, d, scores + i);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sum_lanes));
  for (; i < count; ++i) {
    scores[i] = std::exp((scores[i] - largest) * scale);
    sum += scores[i];
  }
  const float inverse = 1.0F / sum;
  const Vector inverse_lanes = hn::Set(d, inverse);
  for (i = 0; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, scores + i), inverse_lanes), d, scores + i);
  }
  for (; i < count; ++i) scores[i] *= inverse;
  for (; i < padded; ++i) scores[i] = 0;
}

float log_sum_exp_row(const float* x, int64_t count) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float largest = *std::max_element(x, x + count);
  const Vector shift = hn::Set(d, largest);
  constexpr int64_t kVectors = 64;  // their float sum stays exact to a few units of the last place
  double sum = 0;
  int64_t i = 0;
  while (i + lanes <= count) {
    Vector part = hn::Zero(d);
    const int64_t end = std::min(count - lanes, i + (kVectors - 1) * lanes);
    for (; i <= end; i += lanes) {
      part = hn::Add(part, hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), shift)));
    }
    sum += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, part)));
  }
  for (; i < count; ++i) sum += std::exp(static_cast<double>(x[i]) - largest);
  return largest + static_cast<float>(std::log(sum));
}

HWY_INLINE Vector sigmoid(Floats d, Vector x) {
  const Vector one = hn::Set(d, 1.0F);
  // Beyond 88 the exponential leaves float (and the range that Exp() is good for); 1 / e^88 is 0 to
  // every product it enters.
  const Vector e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0F)));
  return hn::Div(one, hn::Add(one, e));
}

void silu_mul_row(const float* gate, const float* up, int64_t count, float* out) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vector g = hn::LoadU(d, gate + i);
    hn::StoreU(hn::Mul(hn::Mul(g, sigmoid(d, g)), hn::LoadU(d, up + i)), d, out + i);
  }
  for (; i < count; ++i) out[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
}

void gelu_tanh_row(float* x, int64_t count) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // 0.5 (1 + tanh(y)) is the logistic function of 2 y.
  constexpr float kTwoSqrtTwoOverPi = 2 * 0.7978845608F;
  const Vector cubic = hn::Set(d, 0.044715F);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vector v = hn::LoadU(d, x + i);
    const Vector inner = hn::MulAdd(hn::Mul(cubic, v), hn::Mul(v, v), v);
    hn::StoreU(hn::Mul(v, sigmoid(d, hn::Mul(hn::Set(d, kTwoSqrtTwoOverPi), inner))), d, x + i);
  }
  for (; i < count; ++i) {
    const float y = kTwoSqrtTwoOverPi * (x[i] + 0.044715F * x[i] * x[i] * x[i]);
    x[i] = x[i] / (1.0F + std::exp(-y));
  }
}

float sum_of_squares(const float* x, int64_t count) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector even = hn::Zero(d);
  Vector odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const Vector a = hn::LoadU(d, x + i);
    const Vector b = hn::LoadU(d, x + i + lanes);
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

void rms_norm_row(const float* x, const float* weight, float epsilon, int64_t count, float* out) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float mean = sum_of_squares(x, count) / static_cast<float>(count);
  const float factor = 1.0F / std::sqrt(mean + epsilon);
  const Vector factors = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vector scaled = hn::Mul(hn::LoadU(d, x + i), factors);
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < count; ++i) out[i] = x[i] * factor * weight[i];
}

void layer_norm_row(const float* x, const float* weight, const float* bias, float epsilon,
                    int64_t count, float* out) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector sums = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) sums = hn::Add(sums, hn::LoadU(d, x + i));
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < count; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(count);
  const Vector means = hn::Set(d, mean);
  sums = hn::Zero(d);
  for (i = 0; i + lanes <= count; i += lanes) {
    const Vector difference = hn::Sub(hn::LoadU(d, x + i), means);
    sums = hn::MulAdd(difference, difference, sums);
  }
  float squares = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0F / std::sqrt(squares / static_cast<float>(count) + epsilon);
  const Vector factors = hn::Set(d, factor);
  for (i = 0; i + lanes <= count; i += lanes) {
    const Vector scaled = hn::Mul(hn::Sub(hn::LoadU(d, x + i), means), factors);
    hn::StoreU(hn::MulAdd(scaled, hn::LoadU(d, weight + i), hn::LoadU(d, bias + i)), d, out + i);
  }
  for (; i < count; ++i) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

const char* target_name() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace HWY_NAMESPACE
}  // namespace glimpse::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse::cpu {

HWY_EXPORT(widen_f32_row);
HWY_EXPORT(widen_f16_row);
HWY_EXPORT(widen_bf16_row);
HWY_EXPORT(widen_f8_row);
HWY_EXPORT(narrow_f32_row);
HWY_EXPORT(finish_f32_row);
HWY_EXPORT(softmax_row);
HWY_EXPORT(log_sum_exp_row);
HWY_EXPORT(silu_mul_row);
HWY_EXPORT(gelu_tanh_row);
HWY_EXPORT(rms_norm_row);
HWY_EXPORT(layer_norm_row);
HWY_EXPORT(target_name);

const char* instruction_set() {
  return HWY_DYNAMIC_DISPATCH(target_name)();
}

void widen_row(const float* row, const float* scales, int64_t columns, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_f32_row)(row, scales, columns, out);
}
void widen_row(const Float16* row, const float* scales, int64_t columns, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_f16_row)(row, scales, columns, out);
}
void widen_row(const BFloat16* row, const float* scales, int64_t columns, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_bf16_row)(row, scales, columns, out);
}
void widen_row(const Float8E4M3* row, const float* scales, int64_t columns, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_f8_row)(row, scales, columns, out);
}
void narrow_row(const float* row, int64_t columns, BFloat16* out) {
  HWY_DYNAMIC_DISPATCH(narrow_f32_row)(row, columns, out);
}
void finish_row(const float* from, const float* bias, bool add, int64_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(finish_f32_row)(from, bias, add, count, to);
}
void softmax(float* scores, int64_t count, int64_t padded, float scale) {
  HWY_DYNAMIC_DISPATCH(softmax_row)(scores, count, padded, scale);
}
float log_sum_exp(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(log_sum_exp_row)(x, count);
}
void silu_mul(const float* gate, const float* up, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(silu_mul_row)(gate, up, count, out);
}
void gelu_tanh(float* x, int64_t count) {
  HWY_DYNAMIC_DISPATCH(gelu_tanh_row)(x, count);
}
void rms_norm(const float* x, const float* weight, float epsilon, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm_row)(x, weight, epsilon, count, out);
}
void layer_norm(const float* x, const float* weight, const float* bias, float epsilon,
                int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(layer_norm_row)(x, weight, bias, epsilon, count, out);
}

void gelu_erf(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] = 0.5F * x[i] * (1.0F + std::erf(x[i] * 0.70710678118F));
  }
}

}  // namespace glimpse::cpu
#endif  // HWY_ONCE
