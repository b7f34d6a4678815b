#include "text/json_schema_overlap.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>

namespace glimpse {
namespace {

// References, branches and members within each other that are followed.
constexpr int kMaxFollowed = 16;

std::string broad_type_of(const Json& value) {
  if (value.is_number()) return "number";  // whole numbers are numbers too
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "boolean";
  return value.is_string() ? "string" : value.is_array() ? "array" : "object";
}

/// The values of "const" or "enum".
std::optional<Json> choices_of(const Json& schema) {
  if (schema.contains("const")) return Json::array({schema["const"]});
  if (schema.contains("enum") && schema["enum"].is_array()) return schema["enum"];
  return std::nullopt;
}

/// Empty: any.
std::set<std::string> types_of(const Json& schema) {
  std::set<std::string> types;
  if (const std::optional<Json> choices = choices_of(schema)) {
    for (const Json& choice : *choices) types.insert(broad_type_of(choice));
  } else if (schema.contains("type")) {
    const Json& type = schema["type"];
    for (const Json& one : type.is_array() ? type : Json::array({type})) {
      if (one.is_string()) types.insert(one == "integer" ? "number" : one.get<std::string>());
    }
  }
  return types;
}

bool requires_member(const Json& schema, const std::string& name) {
  if (!schema.contains("required") || !schema["required"].is_array()) return false;
  const Json& required = schema["required"];
  return std::find(required.begin(), required.end(), name) != required.end();
}

class Comparison {
 public:
  explicit Comparison(const Json& document) : document_(document) {}

  [[nodiscard]] bool are_disjoint(const Json& a, const Json& b, int depth) const {
    if (depth > kMaxFollowed) return false;
    if (a == false || b == false) return true;
    if (!a.is_object() || !b.is_object()) return false;
    for (const auto& [one, other] : {std::pair(&a, &b), std::pair(&b, &a)}) {
      if (one->contains("$ref")) {
        const Json* target = find((*one)["$ref"]);
        return target != nullptr && are_disjoint(*target, *other, depth + 1);
      }
      for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
        if (!one->contains(keyword) || !(*one)[keyword].is_array()) continue;
        const Json& branches = (*one)[keyword];
        return std::all_of(branches.begin(), branches.end(), [&, &rest = *other](const Json& part) {
          return are_disjoint(part, rest, depth + 1);
        });
      }
    }
    return have_different_values(a, b) || have_different_members(a, b, depth);
  }

 private:
  [[nodiscard]] const Json* find(const Json& reference) const {
    if (!reference.is_string()) return nullptr;
    const auto text = reference.get<std::string>();
    try {
      return text.empty() || text[0] != '#' ? nullptr
                                            : &document_.at(Json::json_pointer(text.substr(1)));
    } catch (const Json::exception&) {
      return nullptr;
    }
  }

  static bool have_different_values(const Json& a, const Json& b) {
    const std::optional<Json> a_choices = choices_of(a);
    const std::optional<Json> b_choices = choices_of(b);
    if (a_choices && b_choices) {
      return std::none_of(a_choices->begin(), a_choices->end(), [&](const Json& choice) {
        return std::find(b_choices->begin(), b_choices->end(), choice) != b_choices->end();
      });
    }
    const std::set<std::string> a_types = types_of(a);
    const std::set<std::string> b_types = types_of(b);
    return !a_types.empty() && !b_types.empty() &&
           std::none_of(a_types.begin(), a_types.end(),
                        [&](const std::string& type) { return b_types.count(type) > 0; });
  }

  [[nodiscard]] bool have_different_members(const Json& a, const Json& b, int depth) const {
    const std::set<std::string> object = {"object"};
    if (types_of(a) != object || types_of(b) != object) return false;
    return must_differ(a, b, depth) || must_differ(b, a, depth);
  }
  // Whether a member that objects of `a` must have is one that those of `b` must have otherwise, or
  // cannot have.
  [[nodiscard]] bool must_differ(const Json& a, const Json& b, int depth) const {
    static const Json kNone = Json::object();
    const auto members = [](const Json& schema) -> const Json& {
      const bool has_any = schema.contains("properties") && schema["properties"].is_object();
      return has_any ? schema["properties"] : kNone;
    };
    if (!a.contains("required") || !a["required"].is_array()) return false;
    const bool is_closed = b.contains("additionalProperties") && b["additionalProperties"] == false;
    for (const Json& entry : a["required"]) {
      if (!entry.is_string()) continue;
      const auto name = entry.get<std::string>();
      if (!members(b).contains(name)) {
        if (is_closed) return true;
        continue;
      }
      if (requires_member(b, name) && members(a).contains(name) &&
          are_disjoint(members(a)[name], members(b)[name], depth + 1)) {
        return true;
      }
    }
    return false;
  }

  const Json& document_;
};

}  // namespace

bool are_disjoint(const Json& document, const Json& a, const Json& b) {
  return Comparison(document).are_disjoint(a, b, 0);
}

}  // namespace glimpse
