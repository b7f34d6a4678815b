// Kernel families that a plain kernel can stand in for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace glimpse::cuda {

enum class Family : uint8_t {
  gemm,
  gemv,
  attention_prefill,
  attention_decode,
  attention_vision,
  gemm_w8a8
};

inline constexpr std::array<std::string_view, 6> kFamilyNames = {
    "gemm", "gemv", "attention_prefill", "attention_decode", "attention_vision", "gemm_w8a8"};
inline constexpr int kNumFamilies = static_cast<int>(kFamilyNames.size());

[[nodiscard]] constexpr std::string_view name_of(Family family) {
  return kFamilyNames[static_cast<size_t>(family)];
}

}  // namespace glimpse::cuda
