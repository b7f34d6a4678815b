// Options of a request, checked and completed with the checkpoint's defaults.
#pragma once

#include <vector>

#include "glimpse/options.h"
#include "glimpse/request.h"
#include "model/config.h"
#include "runtime/sampler.h"

namespace glimpse {

/// Throws Error(invalid_argument) naming the option, its value and its range.
void check_sampling(const SamplingOptions& options);

/// Throws Error(invalid_argument) where an answer of a given form is asked for together with
/// options that would break it.
void check_answer_form(const Request& request);

/// Unset fields take the checkpoint's values. `fresh_seed` stands in for an unset seed.
[[nodiscard]] RowSampling resolve_sampling(const SamplingOptions& options,
                                           const GenerationConfig& generation, uint64_t fresh_seed);

/// Throws Error(invalid_argument) for numbers that make no sense for any model.
void check_engine_options(const EngineOptions& options);

}  // namespace glimpse
