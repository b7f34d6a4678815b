// Which grammar a request asks its answer to follow.
#pragma once

#include <memory>

#include "glimpse/request.h"
#include "runtime/loaded_model.h"
#include "text/token_constraint.h"

namespace glimpse {

/// nullptr for an answer of free text. Throws Error(invalid_argument) for a schema or tools that
/// cannot be used. Runs on a worker thread; thread-safe.
[[nodiscard]] std::unique_ptr<TokenConstraint> make_constraint(const LoadedModel& model,
                                                               const Request& request);

}  // namespace glimpse
