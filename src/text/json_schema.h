// JSON schemas as grammars: every answer that follows the grammar is JSON that satisfies the
// schema.
#pragma once

#include <string>

#include "base/json.h"
#include "text/grammar.h"

namespace glimpse {

/// The supported part of JSON Schema is listed in docs/api.md. Members of objects come in the
/// schema's order, and where some are listed there are no others.
/// Throws Error(unsupported) naming a keyword that is not supported and where it stands,
/// Error(invalid_argument) for a schema that is malformed or that nothing can satisfy.
[[nodiscard]] Grammar compile_json_schema(const Json& schema);

/// The same as a fragment of a larger grammar; `what` names the schema in messages.
[[nodiscard]] StateId add_json_schema(GrammarBuilder& builder, StateId from, const Json& schema,
                                      const std::string& what);

}  // namespace glimpse
