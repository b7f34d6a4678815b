// What to give up when a plan is larger than the memory, and how much would fit. Pure.
#pragma once

#include <cstdint>

#include "runtime/memory_planner.h"

namespace glimpse {

inline constexpr int kMaxSequences = 1024;

/// The bytes a plan may take: what is free, or less where the user set a cap. 0: not limited.
[[nodiscard]] int64_t memory_limit(const PlanTarget& target, const EngineOptions& options);

/// Lowers what the user left open until the plan fits `limit` or nothing is left, in the order in
/// which it costs the user least: pictures to one megapixel, KV in FP8, vision weights on demand,
/// fewer sequences (where EngineOptions::fewer_sequences says so), the context to 1024 tokens. Each
/// is announced in the notices.
[[nodiscard]] MemoryPlan lower_to_fit(const PlanInputs& inputs, const EngineOptions& options,
                                      int64_t limit);

/// The most of each with everything else as in a plan; 0: not even the least fits.
struct WhatFits {
  int64_t largest_picture = 0;  // pixels
  int64_t longest_context = 0;
  int most_sequences = 0;
};
[[nodiscard]] WhatFits find_what_fits(const PlanInputs& inputs, const EngineOptions& options,
                                      const EngineShape& shape, int64_t limit);

/// Options that ask for exactly what `shape` is.
[[nodiscard]] EngineOptions pinned_options(const EngineOptions& options, const EngineShape& shape);

/// Throws Error(out_of_memory) that names the part for which the memory does not suffice, and what
/// would fit.
[[noreturn]] void refuse(const PlanInputs& inputs, const EngineOptions& options,
                         const MemoryPlan& plan, int64_t limit);

}  // namespace glimpse
