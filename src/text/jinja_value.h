// The values of the template language: Python's, as far as chat templates meet them. Values are
// immutable but for namespaces; strings know who wrote them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"
#include "text/sourced_text.h"

namespace glimpse::jinja {

class Value;
struct Statement;
struct List;
struct Dict;

struct Undefined {
  std::string name;  ///< what was asked for, for the error when it is used
};
struct None {};
struct Macro {
  const Statement* definition;  ///< owned by the program, which outlives every value
};

// Values are copied freely (loop variables, arguments); what they hold is shared by the copies.
using StringRef = std::shared_ptr<const SourcedText>;
using ListRef = std::shared_ptr<const List>;
using DictRef = std::shared_ptr<const Dict>;
struct Namespace {
  std::shared_ptr<Dict> members;  ///< the one thing a template may change
};

class Value {
 public:
  using Held = std::variant<Undefined, None, bool, int64_t, double, StringRef, ListRef, DictRef,
                            Namespace, Macro>;
  Value() = default;
  Value(Held held, TextSource source = TextSource::chat_template)
      : held_(std::move(held)), source_(source) {}
  static Value string(SourcedText text);
  static Value string(std::string text, TextSource source);
  static Value boolean(bool b) { return {Held(b)}; }
  static Value integer(int64_t i, TextSource source = TextSource::chat_template) {
    return {Held(i), source};
  }
  static Value none() { return {Held(None{})}; }
  static Value undefined(std::string name) { return {Held(Undefined{std::move(name)})}; }
  /// Throws Error(unsupported) for lists nested or grown beyond any reason.
  static Value list(std::vector<Value> items);
  static Value dict(std::vector<std::pair<SourcedText, Value>> members);
  /// A value of the conversation, or of the checkpoint's own files when `source` says so.
  static Value from_json(const Json& json, TextSource source);

  template <typename T>
  [[nodiscard]] const T* get() const {
    return std::get_if<T>(&held_);
  }
  template <typename T>
  [[nodiscard]] bool is() const {
    return std::holds_alternative<T>(held_);
  }
  [[nodiscard]] bool is_number() const { return is<bool>() || is<int64_t>() || is<double>(); }
  /// nullptr unless this is a string.
  [[nodiscard]] const SourcedText* text() const {
    const StringRef* s = get<StringRef>();
    return s == nullptr ? nullptr : s->get();
  }
  /// nullptr unless this is a list.
  [[nodiscard]] const std::vector<Value>* items() const;
  /// nullptr unless this is a dict (a namespace is none).
  [[nodiscard]] const Dict* members() const;
  /// Who a number or truth value came from; strings know it by the byte.
  [[nodiscard]] TextSource scalar_source() const { return source_; }
  /// How deep lists and dicts are nested in it.
  [[nodiscard]] int depth() const;
  /// The bytes and entries in it, counted as often as printing would show them: lists can share
  /// their items, so this may be far more than the memory they take.
  [[nodiscard]] size_t weight() const;

  [[nodiscard]] bool truthy() const;
  /// "string", "list", ... for messages.
  [[nodiscard]] std::string_view type_name() const;

 private:
  Held held_ = Undefined{};
  TextSource source_ = TextSource::chat_template;
};

struct List {
  std::vector<Value> items;
  int depth = 1;
  size_t weight = 1;
};
struct Dict {
  std::vector<std::pair<SourcedText, Value>> members;  // in order of insertion
  int depth = 1;
  size_t weight = 1;

  /// nullptr when there is no such key.
  [[nodiscard]] const Value* find(std::string_view key) const;
  void set(SourcedText key, Value value);
};

/// Python's ==.
[[nodiscard]] bool equal(const Value& a, const Value& b);
/// A number as a double; the value must be one.
[[nodiscard]] double as_double(const Value& number);
/// An integer or truth value as an integer; nullptr-like false when it is neither.
[[nodiscard]] bool as_integer(const Value& value, int64_t& result);

/// Python's str(): what {{ value }} prints.
[[nodiscard]] SourcedText to_text(const Value& value);

struct JsonStyle {
  int indent = -1;  ///< spaces a level; negative: one line
  bool sort_keys = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
/// Python's json.dumps(ensure_ascii=False); false when the value has no JSON form. All of the text
/// counts as the conversation's.
[[nodiscard]] bool to_json(const Value& value, const JsonStyle& style, std::string& out);

}  // namespace glimpse::jinja
