// Invariants. A failed check is a defect of Glimpse, never of its input: bad input throws Error
// with its own code and a hint where it is found.
#pragma once

#include <string_view>

#include <fmt/format.h>

#include "glimpse/error.h"

namespace glimpse {

// The built-ins are what std::source_location is made of; clang 14 has only them.
inline void check(bool condition, std::string_view what, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  if (!condition) [[unlikely]] {
    throw Error(ErrorCode::internal, fmt::format("{} ({}:{})", what, file, line),
                "this is a defect of Glimpse: please report it");
  }
}

}  // namespace glimpse
