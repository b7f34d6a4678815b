#pragma once

#include <cstdint>

#include "glimpse/options.h"

namespace glimpse {

/// All memory of the GPU that an engine of these options would run on, used or not; 0 when it would
/// run on the CPU. Makes nothing on the card.
[[nodiscard]] int64_t gpu_memory_bytes(const EngineOptions& options);

}  // namespace glimpse
