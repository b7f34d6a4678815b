#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/float_formats.h"

namespace glimpse {

enum class DType : uint8_t { f32, f16, bf16, f8_e4m3, i32, i64, u16, u32, u8 };

[[nodiscard]] constexpr int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::u16:
      return 2;
    case DType::f8_e4m3:
    case DType::u8:
      return 1;
  }
  return 0;
}

[[nodiscard]] constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    case DType::f8_e4m3:
      return "f8_e4m3";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::u16:
      return "u16";
    case DType::u32:
      return "u32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

/// The dtype of a C++ element type.
template <typename T>
inline constexpr DType kDTypeOf = DType::u8;
template <>
inline constexpr DType kDTypeOf<float> = DType::f32;
template <>
inline constexpr DType kDTypeOf<Float16> = DType::f16;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::bf16;
template <>
inline constexpr DType kDTypeOf<Float8E4M3> = DType::f8_e4m3;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::i32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::i64;
template <>
inline constexpr DType kDTypeOf<uint16_t> = DType::u16;
template <>
inline constexpr DType kDTypeOf<uint32_t> = DType::u32;

/// Calls body.template operator()<T>() with the element type of an activation: float or BFloat16.
template <typename Body>
decltype(auto) dispatch_activation(DType dtype, Body&& body) {
  if (dtype == DType::f32) return body.template operator()<float>();
  check(dtype == DType::bf16, "activations are f32 or bf16");
  return body.template operator()<BFloat16>();
}

/// The same for a stored weight: float, Float16, BFloat16 or Float8E4M3.
template <typename Body>
decltype(auto) dispatch_weight(DType dtype, Body&& body) {
  if (dtype == DType::f32) return body.template operator()<float>();
  if (dtype == DType::f16) return body.template operator()<Float16>();
  if (dtype == DType::bf16) return body.template operator()<BFloat16>();
  check(dtype == DType::f8_e4m3, "weights are f32, f16, bf16 or f8_e4m3");
  return body.template operator()<Float8E4M3>();
}

}  // namespace glimpse
