// How much is read before a file is known to be what it is said to be.
#pragma once

#include <cstdint>

namespace glimpse {

/// The most bytes of one picture file: the largest that decode are far smaller.
inline constexpr int64_t kMaxPictureFileBytes = int64_t{512} << 20;

}  // namespace glimpse
