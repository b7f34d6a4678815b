#include "text/json_schema.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "text/grammar_pattern.h"
#include "text/json_schema_overlap.h"
#include "text/string_formats.h"

namespace glimpse {
namespace {

using Keywords = std::set<std::string, std::less<>>;

// They say nothing about which values are valid.
const Keywords kAnnotations = {
    "title", "description", "default",    "examples", "$schema",   "$id",          "$comment",
    "$defs", "definitions", "deprecated", "readOnly", "writeOnly", "discriminator"};
const std::map<std::string, Keywords, std::less<>> kKeywordsOfType = {
    {"object", {"properties", "required", "additionalProperties"}},
    {"array", {"items", "prefixItems", "minItems", "maxItems"}},
    {"string", {"minLength", "maxLength", "pattern", "format"}},
    {"integer", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
    {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
    {"boolean", {}},
    {"null", {}}};
const Json kAnything = true;
const Json kNoMembers = Json::object();
const Json kNoItems = Json::array();
constexpr int kMaxDepth = 64;  // of schemas within schemas

std::string type_of(const Json& value) {
  if (value.is_object()) return "object";
  if (value.is_array()) return "array";
  if (value.is_string()) return "string";
  if (value.is_boolean()) return "boolean";
  if (value.is_null()) return "null";
  return value.is_number_integer() ? "integer" : "number";
}

// As it stands in messages: short, and text whatever it holds.
std::string shown(const Json& value) {
  constexpr size_t kMost = 60;
  return value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, kMost);
}

std::string percent_decoded(std::string_view text) {
  const auto digit = [](char c) {
    const std::string_view digits = "0123456789abcdef";
    return digits.find(static_cast<char>(c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c));
  };
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_escape = text[i] == '%' && i + 2 < text.size();
    const size_t high = is_escape ? digit(text[i + 1]) : std::string_view::npos;
    const size_t low = is_escape ? digit(text[i + 2]) : std::string_view::npos;
    if (high == std::string_view::npos || low == std::string_view::npos) {
      result += text[i];
    } else {
      result += static_cast<char>(high * 16 + low);
      i += 2;
    }
  }
  return result;
}

class Compiler {
 public:
  /// `what` names the document in messages; $ref refers into it, and it must outlive the compiler.
  Compiler(GrammarBuilder& builder, const Json& document, std::string what)
      : builder_(builder), document_(document), what_(std::move(what)) {}

  StateId compile(StateId from) { return value(document_, from); }

 private:
  // ---- messages -------------------------------------------------------------------------------
  [[nodiscard]] std::string place() const {
    return path_.empty() ? what_ : fmt::format("{} at {}", what_, path_.substr(0, 200));
  }
  [[noreturn]] void malformed(const std::string& what) const {
    throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}", place(), what));
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorCode::unsupported, fmt::format("{}: {} is not supported", place(), what),
                "docs/api.md lists what is supported");
  }
  // Calls `compile` with the place in messages one step deeper.
  template <typename Function>
  auto within(const std::string& step, Function compile) {
    const size_t length = path_.size();
    path_ += "/" + step;
    const auto result = compile();
    path_.resize(length);
    return result;
  }

  // ---- keywords -------------------------------------------------------------------------------
  void expect_only(const Json& schema, const Keywords& known) const {
    for (const auto& [keyword, unused] : schema.items()) {
      if (kAnnotations.count(keyword) > 0 || known.count(keyword) > 0) continue;
      const bool known_elsewhere =
          std::any_of(kKeywordsOfType.begin(), kKeywordsOfType.end(),
                      [&, &name = keyword](const auto& of) { return of.second.count(name) > 0; });
      unsupported(fmt::format("the keyword {}{}", shown(keyword),
                              known_elsewhere ? " beside these others" : ""));
    }
  }

  StateId value(const Json& schema, StateId from) {
    if (depth_ >= kMaxDepth) unsupported(fmt::format("nesting deeper than {} levels", kMaxDepth));
    ++depth_;
    const StateId end = value_within(schema, from);
    --depth_;
    return end;
  }

  StateId value_within(const Json& schema, StateId from) {
    // Nothing satisfies false: a state that leads nowhere.
    if (schema.is_boolean()) {
      return schema.get<bool>() ? builder_.any_value(from) : builder_.new_state();
    }
    if (!schema.is_object()) malformed(fmt::format("{} is no schema", shown(schema)));
    if (schema.contains("$ref")) {
      expect_only(schema, {"$ref"});
      return reference(schema["$ref"], from);
    }
    if (schema.contains("const") || schema.contains("enum")) return choices(schema, from);
    for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
      if (!schema.contains(keyword)) continue;
      expect_only(schema, {keyword});
      return branches(schema[keyword], keyword, from);
    }
    const std::vector<std::string> types = types_of(schema);
    if (types.empty()) {
      expect_only(schema, {});
      return builder_.any_value(from);
    }
    Keywords known{"type"};  // those of one type may stand beside the others
    for (const std::string& type : types) {
      const Keywords& more = kKeywordsOfType.find(type)->second;
      known.insert(more.begin(), more.end());
    }
    expect_only(schema, known);
    const StateId end = builder_.new_state();
    for (const std::string& type : types) {
      const StateId start = builder_.new_state();
      builder_.jump(from, start);
      builder_.jump(typed(schema, type, start), end);
    }
    return end;
  }

  // What "type" says, or the type that the schema's other keywords are about. Empty: any.
  [[nodiscard]] std::vector<std::string> types_of(const Json& schema) const {
    std::vector<std::string> types;
    if (!schema.contains("type")) {
      for (const auto& [type, keywords] : kKeywordsOfType) {
        const bool is_meant =
            std::any_of(keywords.begin(), keywords.end(),
                        [&](const std::string& keyword) { return schema.contains(keyword); });
        if (is_meant) types.push_back(type);
      }
      return types;
    }
    const Json& type = schema["type"];
    const Json list = type.is_array() ? type : Json::array({type});
    for (const Json& one : list) {
      if (!one.is_string() || kKeywordsOfType.count(one.get_ref<const std::string&>()) == 0) {
        malformed(fmt::format("{} is no type", shown(one)));
      }
      types.push_back(one.get<std::string>());
    }
    if (types.empty()) malformed("\"type\" is an empty list");
    return types;
  }

  StateId typed(const Json& schema, const std::string& type, StateId from) {
    if (type == "object") return object(schema, from);
    if (type == "array") return array(schema, from);
    if (type == "string") return string(schema, from);
    if (type == "integer") return integer(schema, from);
    if (type == "number") return number(schema, from);
    if (type == "boolean") return builder_.one_of(from, {"true", "false"});
    return builder_.literal(from, "null");
  }

  uint32_t count_of(const Json& schema, const char* keyword, uint32_t otherwise) const {
    if (!schema.contains(keyword)) return otherwise;
    const Json& count = schema[keyword];
    // Beyond 64 signed bits, get() wraps to a negative number.
    const bool fits = count.is_number_integer() && count.get<int64_t>() >= 0 &&
                      count.get<int64_t>() < int64_t{kUnlimited};
    if (!fits) malformed(fmt::format("\"{}\" is {}", keyword, shown(count)));
    return count.get<uint32_t>();
  }

  // ---- simple values --------------------------------------------------------------------------
  // A bound as whole number; others are rare, and no decimal of bounded length can be.
  int64_t bound_of(const Json& schema, const char* keyword, int64_t otherwise) const {
    if (!schema.contains(keyword)) return otherwise;
    const Json& limit = schema[keyword];
    if (!limit.is_number()) malformed(fmt::format("\"{}\" is {}", keyword, shown(limit)));
    const auto number = limit.get<double>();
    const bool fits = std::abs(number) <= static_cast<double>(GrammarBuilder::kMaxWhole) &&
                      number == std::floor(number);
    if (!fits) unsupported(fmt::format("the {} of {}", keyword, shown(limit)));
    return static_cast<int64_t>(number);
  }

  StateId integer(const Json& schema, StateId from) {
    constexpr int64_t kMost = GrammarBuilder::kMaxInteger;
    const int64_t least = std::max(bound_of(schema, "minimum", -kMost),
                                   bound_of(schema, "exclusiveMinimum", -kMost - 1) + 1);
    const int64_t most = std::min(bound_of(schema, "maximum", kMost),
                                  bound_of(schema, "exclusiveMaximum", kMost + 1) - 1);
    if (least > most) malformed("no integer is within the bounds");
    return builder_.integer_between(from, least, most);
  }

  StateId number(const Json& schema, StateId from) {
    const Keywords& bounding = kKeywordsOfType.find("number")->second;
    if (std::none_of(bounding.begin(), bounding.end(),
                     [&](const std::string& keyword) { return schema.contains(keyword); })) {
      return builder_.number(from);
    }
    constexpr int64_t kMost = GrammarBuilder::kMaxWhole;
    const int64_t minimum = bound_of(schema, "minimum", -kMost);
    const int64_t maximum = bound_of(schema, "maximum", kMost);
    const int64_t above = bound_of(schema, "exclusiveMinimum", -kMost - 1);
    const int64_t below = bound_of(schema, "exclusiveMaximum", kMost + 1);
    const GrammarBuilder::Bounds bounds{.least = std::max(minimum, above),
                                        .most = std::min(maximum, below),
                                        .above_least = above >= minimum,
                                        .below_most = below <= maximum};
    const bool is_empty = bounds.least > bounds.most || (bounds.least == bounds.most &&
                                                         (bounds.above_least || bounds.below_most));
    if (is_empty) malformed("no number is within the bounds");
    return builder_.number_between(from, bounds);
  }

  StateId string(const Json& schema, StateId from) {
    const uint32_t least = count_of(schema, "minLength", 0);
    const uint32_t most = count_of(schema, "maxLength", kUnlimited);
    if (least > most) malformed(fmt::format("minLength {} exceeds maxLength {}", least, most));
    if (!schema.contains("format")) {
      return schema.contains("pattern") ? pattern(schema["pattern"], least, most, from)
                                        : builder_.string(from, least, most);
    }
    if (schema.contains("pattern")) unsupported("a pattern beside \"format\"");
    if (least > 0 || most != kUnlimited) unsupported("a length beside \"format\"");
    const Json& format = schema["format"];
    if (format == "email") return pattern(kEmailPattern, least, most, from);
    const StateId inside = builder_.literal(from, "\"");
    const std::optional<StateId> end =
        format.is_string() ? add_format(builder_, inside, format.get<std::string>()) : std::nullopt;
    if (!end) unsupported(fmt::format("the format {}", shown(format)));
    return builder_.literal(*end, "\"");
  }

  StateId pattern(const Json& regex, uint32_t least, uint32_t most, StateId from) {
    if (!regex.is_string()) malformed(fmt::format("\"pattern\" is {}", shown(regex)));
    try {
      const RegexAutomaton automaton =
          compile_regex(parse_regex(regex.get_ref<const std::string&>()));
      return add_pattern(builder_, from, automaton, least, most);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: {}", place(), error.what()), error.hint());
    }
  }

  StateId choices(const Json& schema, StateId from) {
    expect_only(schema, {"type", "const", "enum"});
    std::vector<std::string> literals;
    const auto offer = [&](const Json& choice) {
      if (schema.contains("const") && choice != schema["const"]) return;
      if (schema.contains("type") && !has_type(choice, schema)) return;
      literals.push_back(choice.dump());
    };
    if (schema.contains("enum")) {
      if (!schema["enum"].is_array()) malformed("\"enum\" is no list");
      for (const Json& choice : schema["enum"]) offer(choice);
    } else {
      offer(schema["const"]);
    }
    if (literals.empty()) malformed("no value is left of \"enum\" or \"const\"");
    return builder_.one_of(from, literals);
  }

  [[nodiscard]] bool has_type(const Json& choice, const Json& schema) const {
    const std::vector<std::string> types = types_of(schema);
    return std::any_of(types.begin(), types.end(), [&](const std::string& type) {
      return type == type_of(choice) || (type == "number" && choice.is_number());
    });
  }

  // ---- structure ------------------------------------------------------------------------------
  StateId branches(const Json& list, const std::string& keyword, StateId from) {
    if (!list.is_array() || list.empty()) malformed(fmt::format("\"{}\" is no list", keyword));
    if (keyword == "allOf" && list.size() > 1) unsupported("\"allOf\" of several schemas");
    if (keyword == "oneOf") expect_disjoint(list);
    const StateId end = builder_.new_state();
    for (size_t i = 0; i < list.size(); ++i) {
      const StateId start = builder_.new_state();
      builder_.jump(from, start);
      builder_.jump(within(fmt::format("{}/{}", keyword, i), [&] { return value(list[i], start); }),
                    end);
    }
    return end;
  }

  // A value that two branches of "oneOf" allow is invalid, which no grammar of ours can see.
  void expect_disjoint(const Json& branches) const {
    for (size_t i = 0; i < branches.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (are_disjoint(document_, branches[j], branches[i])) continue;
        unsupported(fmt::format(
            "\"oneOf\" whose branches {} and {} may allow the same value (\"anyOf\" would do)", j,
            i));
      }
    }
  }

  // The rule of a referenced schema is made at the first reference.
  StateId reference(const Json& pointer, StateId from) {
    if (!pointer.is_string()) malformed("\"$ref\" is no string");
    const auto text = pointer.get<std::string>();
    if (text.empty() || text[0] != '#') {
      unsupported(fmt::format("the reference {} to another document", shown(pointer)));
    }
    if (const auto known = rules_.find(text); known != rules_.end()) {
      return builder_.call(from, known->second);
    }
    const Json* target = nullptr;
    try {
      target = &document_.at(Json::json_pointer(percent_decoded(text.substr(1))));
    } catch (const Json::exception&) {
      malformed(fmt::format("{} refers to nothing", shown(pointer)));
    }
    const StateId rule = builder_.new_state();
    rules_[text] = rule;
    std::string path = std::move(path_);
    path_ = text.substr(1);
    const StateId end = value(*target, rule);
    path_ = std::move(path);
    end_rule(end);
    return builder_.call(from, rule);
  }

  void end_rule(StateId end) {
    const StateId rule_end = builder_.new_state();
    builder_.jump(end, rule_end);
    builder_.state(rule_end).ends_rule = true;
  }

  StateId array(const Json& schema, StateId from) {
    const uint32_t least = count_of(schema, "minItems", 0);
    const uint32_t most = count_of(schema, "maxItems", kUnlimited);
    if (least > most) malformed(fmt::format("minItems {} exceeds maxItems {}", least, most));
    const StateId end = builder_.new_state();
    const StateId open = builder_.white_space(builder_.literal(from, "["));
    if (least == 0) builder_.edge(open, ']', end);
    if (most == 0) return end;
    // A rule for each item that has a schema of its own and one for the rest, called as often as
    // the bounds say.
    std::vector<StateId> rules;
    const auto add_rule = [&](const std::string& step, const Json& item) {
      rules.push_back(builder_.new_state());
      end_rule(within(step, [&] { return value(item, rules.back()); }));
    };
    const Json& first = schema.contains("prefixItems") ? schema["prefixItems"] : kNoItems;
    if (!first.is_array()) malformed("\"prefixItems\" is no list");
    for (size_t i = 0; i < first.size(); ++i) {
      add_rule(fmt::format("prefixItems/{}", i), first[i]);
    }
    add_rule("items", schema.contains("items") ? schema["items"] : kAnything);
    const auto num_rules = static_cast<uint32_t>(rules.size());
    const uint32_t counted = most == kUnlimited ? std::max(least, num_rules) : most;
    StateId item = open;
    StateId after = open;
    for (uint32_t i = 1; i <= counted; ++i) {
      if (i > 1) item = builder_.white_space(builder_.literal(after, ","));
      after = builder_.call(item, rules[std::min(i, num_rules) - 1]);
      if (i >= least) builder_.edge(builder_.white_space(after), ']', end);
    }
    if (most == kUnlimited) {
      const StateId more = builder_.white_space(builder_.literal(after, ","));
      builder_.jump(builder_.call(more, rules.back()), after);
    }
    return end;
  }

  struct Member {
    std::string name;
    const Json* schema;
    bool is_required;
  };

  StateId object(const Json& schema, StateId from) {
    const Json& properties = schema.contains("properties") ? schema["properties"] : kNoMembers;
    if (!properties.is_object()) malformed("\"properties\" is no object");
    const Json& others =
        schema.contains("additionalProperties") ? schema["additionalProperties"] : kAnything;
    std::set<std::string> required = required_of(schema);
    std::vector<Member> members;
    for (const auto& [name, property] : properties.items()) {
      members.push_back({name, &property, required.erase(name) > 0});
    }
    for (const std::string& name : required) members.push_back({name, &others, true});
    const bool is_closed = others.is_boolean() && !others.get<bool>();
    if (members.empty() && !is_closed) return free_object(others, from);
    return listed_object(members, from);
  }

  [[nodiscard]] std::set<std::string> required_of(const Json& schema) const {
    std::set<std::string> required;
    if (!schema.contains("required")) return required;
    if (!schema["required"].is_array()) malformed("\"required\" is no list");
    for (const Json& name : schema["required"]) {
      if (!name.is_string()) malformed("\"required\" holds something that is no name");
      required.insert(name.get<std::string>());
    }
    return required;
  }

  // Members in their order; those that are not required may be left out. The places between them
  // exist twice: before a first member was written, and after, where a comma is due.
  StateId listed_object(const std::vector<Member>& members, StateId from) {
    const StateId end = builder_.new_state();
    const size_t count = members.size();
    // choice[i]: after a quote that begins the name of one of the members from i on. That they
    // share the quote makes the choice among many a quick one.
    std::vector<StateId> choice;
    for (size_t i = 0; i < count; ++i) choice.push_back(builder_.new_state());
    size_t first_closed = count;  // from here on no member is required any more
    while (first_closed > 0 && !members[first_closed - 1].is_required) --first_closed;

    const StateId open = builder_.white_space(builder_.literal(from, "{"));
    if (count > 0) builder_.edge(open, '"', choice[0]);
    if (first_closed == 0) builder_.edge(open, '}', end);
    for (size_t i = 0; i < count; ++i) {
      const Member& member = members[i];
      const bool has_next = i + 1 < count;
      if (!member.is_required && has_next) builder_.jump(choice[i], choice[i + 1]);
      const StateId colon = builder_.literal(choice[i], Json(member.name).dump().substr(1) + ":");
      const StateId after = within("properties/" + member.name, [&] {
        return value(*member.schema, builder_.white_space(colon));
      });
      if (has_next) {
        builder_.edge(builder_.white_space(builder_.literal(after, ",")), '"', choice[i + 1]);
      }
      if (i + 1 >= first_closed) builder_.edge(builder_.white_space(after), '}', end);
    }
    return end;
  }

  // Names are free and every value follows one schema.
  StateId free_object(const Json& schema, StateId from) {
    if (schema.is_boolean()) return builder_.any_object(from);
    const StateId end = builder_.new_state();
    const StateId open = builder_.white_space(builder_.literal(from, "{"));
    builder_.edge(open, '}', end);
    const StateId key = builder_.new_state();
    builder_.jump(open, key);
    const StateId colon = builder_.literal(builder_.string(key, 0, kUnlimited), ":");
    const StateId after =
        within("additionalProperties", [&] { return value(schema, builder_.white_space(colon)); });
    builder_.edge(builder_.white_space(after), '}', end);
    builder_.jump(builder_.white_space(builder_.literal(after, ",")), key);
    return end;
  }

  GrammarBuilder& builder_;
  const Json& document_;
  std::string what_;
  std::string path_;
  std::map<std::string, StateId> rules_;
  int depth_ = 0;
};

}  // namespace

StateId add_json_schema(GrammarBuilder& builder, StateId from, const Json& schema,
                        const std::string& what) {
  return Compiler(builder, schema, what).compile(from);
}

Grammar compile_json_schema(const Json& schema) {
  GrammarBuilder builder;
  const StateId start = builder.new_state();
  return builder.finish(start, add_json_schema(builder, start, schema, "the JSON schema"));
}

}  // namespace glimpse
