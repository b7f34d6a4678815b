// Memory of pictures that were prepared, kept for the next ones: a fresh page costs the system more
// time than a decoder spends on filling it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace glimpse {

/// `size` zeros, in memory that was recycled where there is some of a fitting size. Thread-safe.
[[nodiscard]] std::vector<uint8_t> take_pixels(size_t size);
/// Keeps the memory for take_pixels(); of 32 MiB in all the oldest is freed. Thread-safe.
void recycle_pixels(std::vector<uint8_t> pixels);

}  // namespace glimpse
