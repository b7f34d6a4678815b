// The syntax tree of a template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace glimpse::jinja {

struct Arguments;
class Evaluation;
/// A filter, test or method: applied to a value and arguments.
using Builtin = Value (*)(Evaluation&, const Value&, const Arguments&);

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind : uint8_t {
    literal,      // value
    name,         // text
    list,         // children
    dict,         // children: key, value, key, value, ...
    attribute,    // child 0 . text
    item,         // child 0 [child 1]
    slice,        // child 0 [child 1 : child 2 : child 3], any of 1..3 may be null
    call,         // child 0 (rest, named)
    builtin,      // function(child 0, rest, named): filters, tests and methods; text is the name
    negate,       // -child
    plus,         // +child
    logical_not,  // not child
    logical_and,
    logical_or,
    arithmetic,     // text is the operator
    concat,         // ~, any number of children
    compare,        // text is the operator, "in" and "not in" among them
    compare_chain,  // a < b < c: children a, b, c; operators in `operators`
    conditional,    // child 1 if child 0 else child 2 (may be null)
  };
  Kind kind = Kind::literal;
  int line = 0;
  int depth = 1;  ///< of the tree below and including it
  std::string text;
  Value value;
  Builtin function = nullptr;
  std::vector<ExpressionPtr> children;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

/// What an assignment or a loop writes to: a name, several names, or a namespace's attribute.
struct Target {
  std::vector<std::string> names;
  std::string attribute;  ///< of names[0]; empty for plain names
};

struct Statement {
  enum class Kind : uint8_t {
    data,          // text
    print,         // expression
    branch,        // expression ? body : otherwise
    loop,          // for target in expression if condition: body, otherwise when it ran never
    assign,        // target = expression
    assign_block,  // target = what body prints
    macro,         // name, parameters, body
    scope,         // body in a scope of its own, with `parameters` as its variables
    break_loop,
    continue_loop,
  };
  Kind kind = Kind::data;
  int line = 0;
  SourcedText text;
  std::string name;
  Target target;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  // default may be null
  Body body;
  Body otherwise;
};

/// Parses a template. Throws Error(bad_model) for what is no Jinja, Error(unsupported) naming the
/// construct and line for Jinja that Glimpse does not run.
[[nodiscard]] Body parse_template(std::string_view source);

// The tables of names; nullptr for one that Glimpse does not know.
[[nodiscard]] Builtin find_filter(std::string_view name);
[[nodiscard]] Builtin find_test(std::string_view name);
[[nodiscard]] Builtin find_method(std::string_view name);

}  // namespace glimpse::jinja
