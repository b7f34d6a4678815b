// What driver.cpp decides from numbers alone; includes no CUDA header.
#pragma once

#include <string>
#include <string_view>

namespace glimpse::cuda {

/// Why this build's kernels cannot run on a card of compute capability major.minor; empty when they
/// can. `architectures` is CMake's list: "80;86;120".
[[nodiscard]] std::string why_not_capability(int major, int minor, std::string_view architectures);

}  // namespace glimpse::cuda
