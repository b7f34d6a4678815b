// Random JSON schemas, a small validator for them that shares no code with the grammar, and random
// walks through what a constraint allows.
#pragma once

#include <cmath>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/token_constraint.h"
#include "text/unicode.h"

namespace glimpse::testing {

// ---- schemas ------------------------------------------------------------------------------------

class SchemaMaker {
 public:
  explicit SchemaMaker(uint32_t seed) : random_(seed) {}

  Json document() {
    Json schema = below(4) == 0 ? array(0) : object(0);
    // References into the document, one of them to itself.
    schema["$defs"]["leaf"] = {{"type", "string"}, {"maxLength", 5}};
    schema["$defs"]["tree \"1\""] = {
        {"type", "object"},
        {"properties",
         {{"name", {{"$ref", "#/$defs/leaf"}}},
          {"children",
           {{"type", "array"}, {"items", {{"$ref", "#/$defs/tree \"1\""}}}, {"maxItems", 3}}}}},
        {"required", {"name", "children"}},
        {"additionalProperties", false}};
    return schema;
  }

  size_t below(size_t limit) { return random_() % limit; }
  std::mt19937& random() { return random_; }

 private:
  std::string word() {
    static const std::vector<std::string> kWords = {
        "a", "name",  "größe", "名前", "a\"b", "back\\slash", "🙂", "line\nend", "x y",
        "é", "tab\t", "",      "{",    "</s>", "ключ",        "\x01", "1",         "null"};
    return kWords[below(kWords.size())];
  }
  Json simple_value() {
    switch (below(6)) {
      case 0:
        return static_cast<int>(below(2000)) - 1000;
      case 1:
        return (static_cast<double>(below(2000)) - 1000) / 8;
      case 2:
        return below(2) == 0;
      case 3:
        return nullptr;
      default:
        return word();
    }
  }

  Json value(int depth) {
    const size_t kind = below(depth > 3 ? 7 : 13);
    switch (kind) {
      case 0:
        return string();
      case 1:
        return number("integer", 1);
      case 2:
        return number("number", 1);
      case 3:
        return {{"type", below(2) == 0 ? "boolean" : "null"}};
      case 4:
        return {{"enum", {simple_value(), simple_value(), word(), word()}}};
      case 5:
        return {{"const", below(4) == 0 ? Json{{word(), {1, 2.5, nullptr}}} : simple_value()}};
      case 6:
        return {{"type", {"string", "integer", "null"}}, {"maxLength", 4}};
      case 7:
        return array(depth);
      case 8:
        if (below(2) == 0) return {{"oneOf", {tagged("a", depth), string(), tagged("b", depth)}}};
        return {{"anyOf", {value(depth + 1), value(depth + 1)}}};
      case 9:
        return {{"$ref", below(2) == 0 ? "#/$defs/leaf" : "#/$defs/tree%20%221%22"}};
      case 10:
        return {{"type", "object"}, {"additionalProperties", value(depth + 1)}};
      default:
        return object(depth);
    }
  }
  Json tagged(const char* tag, int depth) {
    return {{"type", "object"},
            {"properties", {{"tag", {{"const", tag}}}, {"value", value(depth + 1)}}},
            {"required", {"tag", "value"}},
            {"additionalProperties", false}};
  }
  Json string() {
    Json schema = {{"type", "string"}, {"description", word()}};
    const size_t least = below(20);
    if (below(3) == 0) schema["minLength"] = least;
    if (below(3) == 0) {
      schema["pattern"] = pattern(schema.contains("minLength"));
    } else if (below(2) == 0) {
      schema["maxLength"] = least + below(30);
    }
    return schema;
  }
  // Wildcards are bounded, and what may stand anywhere is short: random walks must find their way.
  std::string pattern(bool open_ended) {
    static const std::vector<std::string> kAnywhere = {"a",    "\\d",  "\\w+",  "[a-f]",
                                                       "\\.?", " |\"", "[^a-z]"};
    static const std::vector<std::string> kAtoms = {
        "a",         "é",   "名🙂",        "x y", "\\d",  "[a-f]",
        "(?:ab|c)*", "\\.", "([ \\t]|[0-9])", "\"",  "\\\\", "()"};
    static const std::vector<std::string> kWildcards = {".", "[^a-z\"]", "\\W", "[\\w-]{0,4}",
                                                        "[à-ž_]+?"};
    static const std::vector<std::string> kTimes = {"", "?", "{2}", "{1,3}", "*", "+"};
    const std::string end = !open_ended && below(2) == 0 ? "$" : "";
    if (below(3) == 0) return kAnywhere[below(kAnywhere.size())] + end;
    std::string result = "^";
    for (size_t i = 0; i <= below(4); ++i) {
      const bool is_wild = below(4) == 0;
      const auto& atoms = is_wild ? kWildcards : kAtoms;
      const std::string& times = kTimes[below(is_wild ? 4 : kTimes.size())];
      result +=
          (i > 0 && below(6) == 0 ? "|^(?:" : "(?:") + atoms[below(atoms.size())] + ")" + times;
    }
    return result + end;
  }
  Json number(const char* type, int step) {
    Json schema = {{"type", type}};
    const int64_t scale = below(2) == 0 ? 100 : 1'000'000'000;
    const int64_t least = static_cast<int64_t>(random_()) % scale - scale / 2;
    const int64_t most = least + 2 * step + static_cast<int64_t>(random_()) % scale;
    if (below(2) == 0) schema[below(2) == 0 ? "minimum" : "exclusiveMinimum"] = least;
    if (below(2) == 0) schema[below(2) == 0 ? "maximum" : "exclusiveMaximum"] = most;
    return schema;
  }
  Json array(int depth) {
    Json schema = {{"type", "array"}, {"items", value(depth + 1)}};
    const size_t least = below(4);
    if (below(2) == 0) schema["minItems"] = least;
    if (below(2) == 0) schema["maxItems"] = least + below(4);
    return schema;
  }
  Json object(int depth) {
    Json schema = {{"type", "object"}, {"title", word()}, {"properties", Json::object()}};
    const size_t count = below(6);
    Json required = Json::array();
    for (size_t i = 0; i < count; ++i) {
      const std::string name = word();
      if (schema["properties"].contains(name)) continue;
      schema["properties"][name] = value(depth + 1);
      if (below(2) == 0) required.push_back(name);
    }
    if (below(2) == 0) schema["required"] = required;
    if (below(2) == 0) schema["additionalProperties"] = false;
    return schema;
  }

  std::mt19937 random_;
};

// ---- validation ---------------------------------------------------------------------------------

class Validator {
 public:
  explicit Validator(const Json& document) : document_(document) {}

  [[nodiscard]] bool accepts(const Json& value) const { return accepts(document_, value); }

 private:
  static bool has_type(const std::string& type, const Json& value) {
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_boolean();
    if (type == "null") return value.is_null();
    if (type == "number") return value.is_number();
    return value.is_number_integer() ||
           (value.is_number_float() && value.get<double>() == std::floor(value.get<double>()));
  }
  static size_t length_of(const std::string& text) {
    size_t length = 0;
    for (const char c : text) length += (static_cast<uint8_t>(c) & 0xC0U) != 0x80U ? 1 : 0;
    return length;
  }
  static std::wstring wide(std::string_view text) {
    std::wstring result;
    while (!text.empty()) {
      const Utf8Step step = utf8_step(text);
      result += static_cast<wchar_t>(step.code_point);
      text.remove_prefix(static_cast<size_t>(step.length));
    }
    return result;
  }
  static bool matches(const Json& schema, const std::string& text) {
    if (!schema.contains("pattern")) return true;
    const std::wregex regex(wide(schema["pattern"].get<std::string>()));
    return std::regex_search(wide(text), regex);
  }
  static bool within_count(const Json& schema, const char* least, const char* most, size_t count) {
    return (!schema.contains(least) || count >= schema[least].get<size_t>()) &&
           (!schema.contains(most) || count <= schema[most].get<size_t>());
  }
  static bool within_bounds(const Json& schema, double value) {
    return (!schema.contains("minimum") || value >= schema["minimum"].get<double>()) &&
           (!schema.contains("maximum") || value <= schema["maximum"].get<double>()) &&
           (!schema.contains("exclusiveMinimum") ||
            value > schema["exclusiveMinimum"].get<double>()) &&
           (!schema.contains("exclusiveMaximum") ||
            value < schema["exclusiveMaximum"].get<double>());
  }
  bool accepts(const Json& schema, const Json& value) const {
    if (schema.is_boolean()) return schema.get<bool>();
    if (schema.contains("$ref")) {
      const auto name = schema["$ref"].get<std::string>();
      return accepts(document_["$defs"][name == "#/$defs/leaf" ? "leaf" : "tree \"1\""], value);
    }
    if (schema.contains("const") && value != schema["const"]) return false;
    if (schema.contains("enum")) {
      bool found = false;
      for (const Json& one : schema["enum"]) found |= value == one;
      if (!found) return false;
    }
    for (const char* keyword : {"anyOf", "oneOf"}) {
      if (!schema.contains(keyword)) continue;
      int found = 0;
      for (const Json& branch : schema[keyword]) found += accepts(branch, value) ? 1 : 0;
      if (found == 0 || (keyword == std::string("oneOf") && found > 1)) return false;
    }
    if (schema.contains("type")) {
      bool found = false;
      const Json& type = schema["type"];
      for (const Json& one : type.is_array() ? type : Json::array({type})) {
        found |= has_type(one.get<std::string>(), value);
      }
      if (!found) return false;
    }
    if (value.is_string()) {
      const auto text = value.get<std::string>();
      return within_count(schema, "minLength", "maxLength", length_of(text)) &&
             matches(schema, text);
    }
    if (value.is_number()) return within_bounds(schema, value.get<double>());
    if (value.is_array()) {
      if (!within_count(schema, "minItems", "maxItems", value.size())) return false;
      for (const Json& item : value) {
        if (schema.contains("items") && !accepts(schema["items"], item)) return false;
      }
    }
    return !value.is_object() || accepts_members(schema, value);
  }
  bool accepts_members(const Json& schema, const Json& value) const {
    for (const Json& name : schema.value("required", Json::array())) {
      if (!value.contains(name.get<std::string>())) return false;
    }
    const Json others = schema.value("additionalProperties", Json(true));
    for (const auto& [name, member] : value.items()) {
      const bool is_listed = schema.contains("properties") && schema["properties"].contains(name);
      if (!accepts(is_listed ? schema["properties"][name] : others, member)) return false;
    }
    return true;
  }

  const Json& document_;
};

// ---- walks --------------------------------------------------------------------------------------

inline bool is_allowed(std::span<const uint32_t> mask, TokenId token) {
  const auto id = static_cast<size_t>(token);
  return (mask[id / 32] >> (id % 32) & 1U) != 0;
}

inline std::vector<TokenId> allowed_in(std::span<const uint32_t> mask) {
  std::vector<TokenId> tokens;
  for (size_t id = 0; id < mask.size() * 32; ++id) {
    if (is_allowed(mask, static_cast<TokenId>(id))) tokens.push_back(static_cast<TokenId>(id));
  }
  return tokens;
}

/// Random allowed tokens until `stop`; after `patience` tokens such that end the answer soon.
/// `watch` sees each mask before the choice.
template <typename Watch>
std::string random_answer(TokenConstraint& constraint, const Tokenizer& tokenizer, TokenId stop,
                          int patience, std::mt19937& random, Watch watch) {
  constexpr int kMaxTokens = 20'000;
  std::string text;
  for (int i = 0; i < kMaxTokens; ++i) {
    const auto mask = constraint.mask();
    watch(mask);
    const std::vector<TokenId> allowed = allowed_in(mask);
    if (allowed.empty()) throw std::runtime_error("nothing is allowed after " + text);
    TokenId token = allowed[random() % allowed.size()];
    // Uniform choices would hardly ever end a string or an answer.
    const bool hurries = i > patience || random() % 4 == 0;
    if (hurries) {
      for (const char* end : {"\"", "}", "]", "0", "1"}) {
        const TokenId closing = tokenizer.find(end);
        // A string that cannot end yet may need anything else.
        const bool is_sure = random() % 4 != 0 || *end == '"';
        if (closing >= 0 && is_allowed(mask, closing) && is_sure) {
          token = closing;
          break;
        }
      }
      if (is_allowed(mask, stop)) token = stop;
    }
    if (token == stop) return text;
    text += tokenizer.token_bytes(token);
    constraint.accept(token);
  }
  throw std::runtime_error("no end after " + text);
}

}  // namespace glimpse::testing
