// Options of a request, checked and completed with the checkpoint's defaults.
#pragma once

#include <vector>

#include "glimpse/options.h"
#include "model/config.h"
#include "runtime/sampler.h"

namespace glimpse {

/// Throws Error(invalid_argument) naming the option, its value and its range.
void check_sampling(const SamplingOptions& options);

/// Unset fields take the checkpoint's values. `fresh_seed` stands in for an unset seed.
[[nodiscard]] RowSampling resolve_sampling(const SamplingOptions& options,
                                           const GenerationConfig& generation, uint64_t fresh_seed);

/// Throws Error(invalid_argument) for numbers that make no sense for any model.
void check_engine_options(const EngineOptions& options);

}  // namespace glimpse
