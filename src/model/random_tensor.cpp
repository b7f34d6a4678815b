#include "model/random_tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace glimpse {
namespace {

// A counter goes in and 64 well-mixed bits come out (the finaliser of splitmix64).
uint64_t mix(uint64_t counter) {
  uint64_t x = counter * 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31U);
}

uint64_t hash_of(const std::string& name) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3ULL;
  return hash;
}

// 256 codes whose values are evenly spread over [-448, 448]: a random byte becomes a code by one
// look-up, and no code is NaN.
std::array<std::byte, 256> make_codes() {
  std::array<std::byte, 256> codes{};
  for (size_t i = 0; i < codes.size(); ++i) {
    const float value = (static_cast<float>(i) - 127.5F) * (448.0F / 127.5F);
    codes[i] = std::byte{to_float8_e4m3(value).bits};
  }
  return codes;
}

void fill_codes(uint64_t key, uint64_t counter, std::span<std::byte> bytes) {
  static const std::array<std::byte, 256> kCodes = make_codes();
  for (size_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t bits = mix(key + counter++);
    const size_t count = std::min<size_t>(8, bytes.size() - i);
    for (size_t j = 0; j < count; ++j) bytes[i + j] = kCodes[(bits >> (8 * j)) & 0xFFU];
  }
}

void fill_bfloat16(uint64_t key, uint64_t counter, float centre, float amplitude,
                   std::span<std::byte> bytes) {
  const float step = amplitude / 32768.0F;
  for (size_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t bits = mix(key + counter++);
    std::array<uint16_t, 4> values{};
    for (size_t j = 0; j < 4; ++j) {
      const auto draw = static_cast<int16_t>(bits >> (16 * j));
      const float value = centre + (static_cast<float>(draw) + 0.5F) * step;
      // Rounded by hand: to_bfloat16() has a branch for NaN, which there is none of.
      values[j] = static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + 0x8000U) >> 16U);
    }
    std::memcpy(bytes.data() + i, values.data(), std::min<size_t>(8, bytes.size() - i));
  }
}

}  // namespace

int64_t RandomTensor::num_elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

void RandomTensor::fill(uint64_t seed, int64_t first_byte, std::span<std::byte> bytes) const {
  check(first_byte % kGranule == 0, "a piece of a random tensor begins at a granule");
  const uint64_t key = mix(seed ^ hash_of(name));
  const auto counter = static_cast<uint64_t>(first_byte) / 8;
  if (dtype == DType::f8_e4m3) {
    fill_codes(key, counter, bytes);
  } else {
    check(dtype == DType::bf16, "random tensors are bf16 or f8_e4m3");
    fill_bfloat16(key, counter, centre, amplitude, bytes);
  }
}

}  // namespace glimpse
