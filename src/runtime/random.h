// The random numbers of sampling: a function of the request's seed and the token's index alone, so
// that an answer depends neither on what else was in the batch nor on a preemption.
#pragma once

#include <cstdint>

namespace glimpse {

/// A bijection of 64 bits in which every input bit flips about half of the output bits
/// (the finaliser of SplitMix64).
[[nodiscard]] constexpr uint64_t mix_bits(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9U;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

/// A draw from [0, 1) with 24 random bits, all that a float can hold.
[[nodiscard]] constexpr float uniform_draw(uint64_t seed, uint64_t token_index) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15U;  // 2^64 / golden ratio: SplitMix64's step
  const uint64_t bits = mix_bits(mix_bits(seed + kGolden) + (token_index + 1) * kGolden);
  return static_cast<float>(bits >> 40) * 0x1p-24F;
}

}  // namespace glimpse
