// Whether JSON schemas exclude each other, which "oneOf" must know of its branches.
#pragma once

#include "base/json.h"

namespace glimpse {

/// Whether no value satisfies both: true only where it can be told from their types, from their
/// "const" and "enum", or from a member that objects of both must have or only one may have.
/// References are into `document`.
[[nodiscard]] bool are_disjoint(const Json& document, const Json& a, const Json& b);

}  // namespace glimpse
