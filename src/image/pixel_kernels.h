// Reordering the colours of whole rows, in SIMD chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glimpse {

/// `count` pixels stored as blue, green, red, each followed by a byte that is dropped if
/// `pixel_bytes` is 4 instead of 3, to out [count, 3].
void rgb_from_bgr(const uint8_t* pixels, size_t pixel_bytes, size_t count, uint8_t* out);

}  // namespace glimpse
