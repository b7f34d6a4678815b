// Whether the fast kernels agree with the plain ones on this card: a compiler or driver defect then
// costs speed, not wrong answers. Takes a few milliseconds; the outcome is kept in a file for this
// driver, card and build.
#pragma once

#include <string>
#include <vector>

#include "backend/backend.h"
#include "cuda/cuda_context.h"

namespace glimpse::cuda {

/// Compares each enabled family with its plain kernel on small random inputs. `backend` is the one
/// that `context` belongs to.
[[nodiscard]] std::vector<Family> find_failing_families(Backend& backend, CudaContext& context);

/// Turns failing families off and says so, one sentence each.
[[nodiscard]] std::vector<std::string> apply_self_test(Backend& backend, CudaContext& context);

}  // namespace glimpse::cuda
