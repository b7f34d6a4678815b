// One rendering of a template: variables, output, and the limits that keep an untrusted template
// from running or growing without end.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_syntax.h"

namespace glimpse::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

using Variables = std::vector<std::pair<std::string, Value>>;

/// Not thread-safe; made for one render.
class Evaluation {
 public:
  explicit Evaluation(Variables globals) : frames_{std::move(globals), {}} {}

  /// What the template prints. Throws Error(invalid_argument) when it raises an exception.
  [[nodiscard]] SourcedText render(const Body& body);

  // For filters, tests and methods:

  /// A failure of the template or of what it was given, with the line.
  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void unsupported(const std::string& what) const;
  /// Accounts for work of `amount` steps.
  void charge(size_t amount);
  /// A new string, accounted for.
  [[nodiscard]] Value string(SourcedText text);
  [[nodiscard]] Value list(std::vector<Value> items);

  /// An argument by place or name; nullptr when it was not given.
  [[nodiscard]] static const Value* argument(const Arguments& arguments, size_t place,
                                             std::string_view name);
  /// The same, which must be what is asked for.
  [[nodiscard]] const SourcedText& text_argument(const Arguments& arguments, size_t place,
                                                 std::string_view name) const;
  [[nodiscard]] int64_t integer_argument(const Arguments& arguments, size_t place,
                                         std::string_view name, int64_t otherwise) const;

  /// Python's object.name and object[key], which give an undefined value for what is not there.
  [[nodiscard]] Value attribute(const Value& object, const std::string& name);
  [[nodiscard]] Value item(const Value& object, const Value& key);
  /// What a loop over `value` goes through.
  [[nodiscard]] std::vector<Value> iterate(const Value& value);
  /// Python's `needle in haystack` and a < b.
  [[nodiscard]] bool contains(const Value& haystack, const Value& needle);
  [[nodiscard]] bool less(const Value& a, const Value& b);
  /// Python's str() of anything printable, accounted for.
  [[nodiscard]] SourcedText text_of(const Value& value);

 private:
  enum class Flow : uint8_t { next, break_loop, continue_loop };
  class Descent;

  Flow run(const Body& body, SourcedText& out);
  Flow run(const Statement& statement, SourcedText& out);
  Flow run_loop(const Statement& loop, SourcedText& out);
  void run_scope(const Statement& scope, SourcedText& out);
  void assign(const Target& target, const Value& value);
  void assign_one(const std::string& name, Value value);

  [[nodiscard]] Value evaluate(const Expression& expression);
  [[nodiscard]] Value evaluate_name(const std::string& name);
  [[nodiscard]] Value evaluate_dict(const Expression& expression);
  [[nodiscard]] Value evaluate_concat(const Expression& expression);
  [[nodiscard]] Value evaluate_slice(const Expression& expression);
  [[nodiscard]] Value evaluate_call(const Expression& expression);
  [[nodiscard]] Value evaluate_chain(const Expression& expression);
  [[nodiscard]] bool compare(const std::string& op, const Value& a, const Value& b);
  [[nodiscard]] Value arithmetic(const std::string& op, const Value& a, const Value& b);
  [[nodiscard]] Value integer_arithmetic(const std::string& op, int64_t a, int64_t b,
                                         TextSource source);
  [[nodiscard]] Value repeat(const Value& sequence, int64_t count);
  [[nodiscard]] Value call_global(const std::string& name, const Arguments& arguments);
  [[nodiscard]] Value call_macro(const Statement& macro, const Arguments& arguments);
  [[nodiscard]] Value make_range(const Arguments& arguments);
  [[nodiscard]] Arguments evaluate_arguments(const Expression& call);
  void expect_storable(const Value& value) const;

  std::vector<Variables> frames_;  // 0: globals, 1: the template's own, then loops and scopes
  size_t visible_from_ = 1;        // frames below (but for the first two) are not seen by a macro
  size_t work_ = 0;
  int depth_ = 0;
  int line_ = 0;
};

}  // namespace glimpse::jinja
