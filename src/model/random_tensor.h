// One tensor of a synthesised checkpoint: what it is called and how its values are drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace glimpse {

struct RandomTensor {
  std::string name;
  DType dtype = DType::bf16;  // bf16 or f8_e4m3
  std::vector<int64_t> shape;
  float centre = 0;     // values are uniform in [centre - amplitude, centre + amplitude];
  float amplitude = 0;  // FP8 codes in [-448, 448], whatever these say

  [[nodiscard]] int64_t num_elements() const;
  [[nodiscard]] int64_t num_bytes() const { return num_elements() * bytes_of(dtype); }
  /// The tensor's bytes from `first_byte` on, a multiple of kGranule. Any piece may be made at any
  /// time by any thread.
  void fill(uint64_t seed, int64_t first_byte, std::span<std::byte> bytes) const;

  static constexpr int64_t kGranule = 64;
};

}  // namespace glimpse
