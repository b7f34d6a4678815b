// Elements as vectors of f32, for every instruction set: included by each file that Highway
// compiles several times, inside its own HWY_BEFORE_NAMESPACE. No include guard of the usual kind
// for that reason.
#if defined(GLIMPSE_CPU_WIDEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GLIMPSE_CPU_WIDEN_INL_H_
#undef GLIMPSE_CPU_WIDEN_INL_H_
#else
#define GLIMPSE_CPU_WIDEN_INL_H_
#endif

#include <hwy/highway.h>

#include "base/float_formats.h"

HWY_BEFORE_NAMESPACE();
namespace glimpse::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Vector = hn::Vec<Floats>;

HWY_INLINE Vector widen(Floats, const float* p) {
  return hn::LoadU(Floats(), p);
}

HWY_INLINE Vector widen(Floats d, const BFloat16* p) {
  const hn::Rebind<uint16_t, Floats> d16;
  const hn::RebindToUnsigned<Floats> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

HWY_INLINE Vector widen(Floats d, const Float16* p) {
  const hn::Rebind<uint16_t, Floats> d16;
  const hn::RebindToUnsigned<Floats> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d32, 0x8000U)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(d32, 0x7FFFU)));
  const Vector value = hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112F));
  return hn::BitCast(d, hn::Or(sign, hn::BitCast(d32, value)));
}

// The byte with its sign repeated upwards, shifted: sign, exponent and mantissa stand where f32 has
// them, with an exponent that is 120 too small.
HWY_INLINE Vector widen(Floats d, const Float8E4M3* p) {
  const hn::Rebind<int8_t, Floats> d8;
  const hn::RebindToSigned<Floats> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d8, reinterpret_cast<const int8_t*>(p)));
  const auto kept =
      hn::And(hn::ShiftLeft<20>(bits), hn::Set(d32, static_cast<int32_t>(0x87F00000U)));
  return hn::Mul(hn::BitCast(d, kept), hn::Set(d, 0x1p120F));
}

}  // namespace HWY_NAMESPACE
}  // namespace glimpse::cpu
HWY_AFTER_NAMESPACE();

#endif  // GLIMPSE_CPU_WIDEN_INL_H_
