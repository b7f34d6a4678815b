#include "runtime/constraint_factory.h"

namespace glimpse {

std::unique_ptr<TokenConstraint> make_constraint(const LoadedModel&, const Request& request) {
  if (request.response_format.kind != ResponseFormat::Kind::text) {
    throw Error(ErrorCode::unsupported, "answers in a given JSON form are not possible yet",
                "ask for the form in the prompt");
  }
  if (request.tool_choice == ToolChoice::required || request.tool_choice == ToolChoice::named) {
    throw Error(ErrorCode::unsupported, "a tool call cannot be forced yet", "use tool_choice auto");
  }
  return nullptr;
}

}  // namespace glimpse
