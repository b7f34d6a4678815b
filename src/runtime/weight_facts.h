// What a memory plan needs to know of a checkpoint and of a device.
#pragma once

#include "backend/backend.h"
#include "model/config.h"
#include "model/weight_store.h"
#include "runtime/memory_planner.h"

namespace glimpse {

/// How `backend` would bind the weights, without reading them.
[[nodiscard]] WeightFacts measure_weights(WeightStore& store, const ModelConfig& config,
                                          Backend& backend, bool quantize);

/// Throws Error(invalid_argument) where W8A8 is asked of weights that will not be FP8.
void require_fp8_weights(const WeightStore& store, const EngineOptions& options);

/// What CUDA's context, all kernels and the backend's workspaces take on a card of this compute
/// capability (86 is 8.6) where it cannot be measured.
[[nodiscard]] int64_t assumed_context_bytes(int capability);

/// The device of a backend that was made and has allocated nothing beyond itself.
[[nodiscard]] PlanTarget plan_target(const Backend& backend, int cuda_device);

}  // namespace glimpse
