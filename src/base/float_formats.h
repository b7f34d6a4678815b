// The narrow floating-point formats of checkpoints and activations, as bit patterns, and their
// exact conversions to and from float. Rounding is to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace glimpse {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
/// 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity; 0x7F and 0xFF are NaN; max 448.
struct Float8E4M3 {
  uint8_t bits;
};

constexpr float to_float(float x) {
  return x;
}

constexpr float to_float(BFloat16 x) {
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}

constexpr float to_float(Float16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000U} << 16;
  const uint32_t magnitude = x.bits & 0x7FFFU;
  if (magnitude >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | (magnitude << 13));
  // Exponent and mantissa moved into place are the value times 2^-112, subnormals included.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

constexpr float to_float(Float8E4M3 x) {
  const uint32_t sign = uint32_t{x.bits & 0x80U} << 24;
  const uint32_t magnitude = x.bits & 0x7FU;
  if (magnitude == 0x7FU) return std::bit_cast<float>(sign | 0x7FC00000U);
  const float scaled = std::bit_cast<float>(magnitude << 20) * 0x1p120F;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

constexpr BFloat16 to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16)};
}

constexpr Float16 to_float16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return {static_cast<uint16_t>(sign | 0x7E00U)};
  if (magnitude >= 0x477FF000U) return {static_cast<uint16_t>(sign | 0x7C00U)};
  if (magnitude < 0x38800000U) {  // subnormal: the addition rounds to units of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p-1F;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000U))};
  }
  const uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13))};
}

/// Saturates at +-448, as checkpoints are quantised.
constexpr Float8E4M3 to_float8_e4m3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return {static_cast<uint8_t>(sign | 0x7FU)};
  if (magnitude >= 0x43E00000U) return {static_cast<uint8_t>(sign | 0x7EU)};
  if (magnitude < 0x3C800000U) {  // below 2^-6: the addition rounds to units of 2^-9
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14F;
    return {static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000U))};
  }
  const uint32_t rounded = magnitude + 0x7FFFFU + ((magnitude >> 20) & 1U);
  const uint32_t code = (rounded - 0x3C000000U) >> 20;
  return {static_cast<uint8_t>(sign | (code > 0x7EU ? 0x7EU : code))};
}

}  // namespace glimpse
