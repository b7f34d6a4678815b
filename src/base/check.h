// Invariants. A failed check is a defect of Glimpse, never of its input: bad input throws Error
// with its own code and a hint where it is found.
#pragma once

#include <source_location>
#include <string_view>

#include <fmt/format.h>

#include "glimpse/error.h"

namespace glimpse {

inline void check(bool condition, std::string_view what,
                  std::source_location where = std::source_location::current()) {
  if (!condition) [[unlikely]] {
    throw Error(ErrorCode::internal,
                fmt::format("{} ({}:{})", what, where.file_name(), where.line()),
                "this is a defect of Glimpse: please report it");
  }
}

}  // namespace glimpse
