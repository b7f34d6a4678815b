#pragma once

#include <cstdint>

namespace glimpse {

/// Resident memory of this process as the kernel counts it; 0 where /proc is absent.
struct ProcessMemory {
  int64_t resident_bytes = 0;
  int64_t peak_resident_bytes = 0;
};
[[nodiscard]] ProcessMemory process_memory();

}  // namespace glimpse
