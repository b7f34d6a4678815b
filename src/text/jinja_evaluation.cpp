#include "text/jinja_evaluation.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include <fmt/format.h>

#include "text/jinja_strings.h"

namespace glimpse::jinja {
namespace {

constexpr size_t kMaxWork = 20'000'000;  // steps; a long conversation takes some ten thousand
constexpr int kMaxDepth = 1500;          // of expressions, blocks and macro calls together

TextSource joined(const Value& a, const Value& b) {
  const bool both = a.scalar_source() == TextSource::chat_template &&
                    b.scalar_source() == TextSource::chat_template;
  return both ? TextSource::chat_template : TextSource::conversation;
}

bool is_sequence(const Value& value) {
  return value.text() != nullptr || value.items() != nullptr;
}

}  // namespace

/// Bounds recursion; the tree's own depth is bounded by the parser, macros call one another.
class Evaluation::Descent {
 public:
  explicit Descent(Evaluation& evaluation) : evaluation_(evaluation) {
    if (++evaluation_.depth_ > kMaxDepth) {
      evaluation_.fail("macros call one another without end");
    }
  }
  ~Descent() { --evaluation_.depth_; }
  Descent(const Descent&) = delete;
  Descent& operator=(const Descent&) = delete;

 private:
  Evaluation& evaluation_;
};

void Evaluation::fail(const std::string& what) const {
  throw Error(ErrorCode::invalid_argument, fmt::format("chat template, line {}: {}", line_, what),
              "the checkpoint's template does not accept this conversation");
}

void Evaluation::unsupported(const std::string& what) const {
  throw Error(ErrorCode::unsupported,
              fmt::format("chat template, line {}: {} is not supported", line_, what));
}

void Evaluation::charge(size_t amount) {
  work_ += amount;
  if (work_ > kMaxWork) fail(fmt::format("it runs longer than {} steps", kMaxWork));
}

Value Evaluation::string(SourcedText text) {
  charge(1 + text.size() / 8);
  return Value::string(std::move(text));
}

Value Evaluation::list(std::vector<Value> items) {
  charge(1 + items.size());
  for (const Value& item : items) expect_storable(item);
  return Value::list(std::move(items));
}

SourcedText Evaluation::text_of(const Value& value) {
  charge(1 + value.weight() / 8);
  return to_text(value);
}

/// A namespace inside another value could come to hold itself.
void Evaluation::expect_storable(const Value& value) const {
  if (value.is<Namespace>()) unsupported("a namespace inside another value");
}

const Value* Evaluation::argument(const Arguments& arguments, size_t place, std::string_view name) {
  if (place < arguments.positional.size()) return &arguments.positional[place];
  for (const auto& [given, value] : arguments.named) {
    if (given == name) return &value;
  }
  return nullptr;
}

const SourcedText& Evaluation::text_argument(const Arguments& arguments, size_t place,
                                             std::string_view name) const {
  const Value* value = argument(arguments, place, name);
  if (value == nullptr || value->text() == nullptr)
    fail(fmt::format("\"{}\" must be a string", name));
  return *value->text();
}

int64_t Evaluation::integer_argument(const Arguments& arguments, size_t place,
                                     std::string_view name, int64_t otherwise) const {
  const Value* value = argument(arguments, place, name);
  if (value == nullptr || value->is<None>()) return otherwise;
  int64_t result = 0;
  if (!as_integer(*value, result)) fail(fmt::format("\"{}\" must be an integer", name));
  return result;
}

// ---- values ----

Value Evaluation::attribute(const Value& object, const std::string& name) {
  if (const auto* undefined = object.get<Undefined>()) {
    fail(fmt::format("'{}' is undefined", undefined->name));
  }
  const Value* found = nullptr;
  if (const auto* ns = object.get<Namespace>()) found = ns->members->find(name);
  if (const Dict* dict = object.members()) {
    charge(1 + dict->members.size() / 4);
    if (name == "items" || name == "keys" || name == "values" || name == "get" || name == "pop" ||
        name == "copy" || name == "update" || name == "clear" || name == "setdefault") {
      unsupported(fmt::format("the method \"{}\" without a call", name));
    }
    found = dict->find(name);
  }
  return found == nullptr ? Value::undefined(name) : *found;
}

Value Evaluation::item(const Value& object, const Value& key) {
  if (const auto* undefined = object.get<Undefined>()) {
    fail(fmt::format("'{}' is undefined", undefined->name));
  }
  if (const SourcedText* name = key.text()) {
    if (const Dict* dict = object.members()) {
      charge(1 + dict->members.size() / 4);
      const Value* found = dict->find(name->text());
      return found == nullptr ? Value::undefined(name->text()) : *found;
    }
    if (object.is<Namespace>()) return attribute(object, name->text());
    return Value::undefined(name->text());
  }
  int64_t index = 0;
  if (!as_integer(key, index) || !is_sequence(object)) return Value::undefined("item");
  if (const auto* items = object.items()) {
    const auto size = static_cast<int64_t>(items->size());
    if (index < 0) index += size;
    if (index < 0 || index >= size) return Value::undefined("item");
    return (*items)[static_cast<size_t>(index)];
  }
  charge(1 + object.weight() / 8);
  const CodePoints code_points(object.text()->text());
  if (index < 0) index += code_points.count();
  if (index < 0 || index >= code_points.count()) return Value::undefined("item");
  return string(object.text()->substr(code_points.offset(index),
                                      code_points.offset(index + 1) - code_points.offset(index)));
}

std::vector<Value> Evaluation::iterate(const Value& value) {
  charge(1);
  std::vector<Value> result;
  if (const auto* items = value.items()) {
    charge(items->size());
    result = *items;
  } else if (const Dict* dict = value.members()) {
    for (const auto& [key, member] : dict->members) result.push_back(string(key));
  } else if (const SourcedText* text = value.text()) {
    const CodePoints code_points(text->text());
    for (int64_t i = 0; i < code_points.count(); ++i) {
      const size_t begin = code_points.offset(i);
      result.push_back(string(text->substr(begin, code_points.offset(i + 1) - begin)));
    }
  } else if (!value.is<Undefined>()) {
    fail(fmt::format("a {} cannot be iterated", value.type_name()));
  }
  return result;
}

bool Evaluation::contains(const Value& haystack, const Value& needle) {
  charge(1 + haystack.weight() / 8);
  if (const SourcedText* text = haystack.text()) {
    if (needle.text() == nullptr)
      fail(fmt::format("a {} is looked for in a string", needle.type_name()));
    return text->text().find(needle.text()->text()) != std::string::npos;
  }
  if (const auto* items = haystack.items()) {
    return std::any_of(items->begin(), items->end(),
                       [&](const Value& item) { return equal(item, needle); });
  }
  if (const Dict* dict = haystack.members()) {
    return needle.text() != nullptr && dict->find(needle.text()->text()) != nullptr;
  }
  if (haystack.is<Undefined>()) return false;
  fail(fmt::format("\"in\" needs a string, list or dict, not a {}", haystack.type_name()));
}

bool Evaluation::less(const Value& a, const Value& b) {
  charge(1);
  if (a.is_number() && b.is_number()) {
    int64_t x = 0;
    int64_t y = 0;
    if (as_integer(a, x) && as_integer(b, y)) return x < y;
    return as_double(a) < as_double(b);
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    charge(std::min(a.weight(), b.weight()) / 8);
    return a.text()->text() < b.text()->text();  // UTF-8 sorts as its code points do
  }
  fail(fmt::format("a {} cannot be compared with a {}", a.type_name(), b.type_name()));
}

// ---- statements ----

SourcedText Evaluation::render(const Body& body) {
  SourcedText out;
  run(body, out);
  return out;
}

Evaluation::Flow Evaluation::run(const Body& body, SourcedText& out) {
  const Descent descent(*this);
  for (const auto& statement : body) {
    const Flow flow = run(*statement, out);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Evaluation::Flow Evaluation::run(const Statement& statement, SourcedText& out) {
  charge(1);
  line_ = statement.line;
  switch (statement.kind) {
    case Statement::Kind::data:
      charge(statement.text.size() / 8);
      out.append(statement.text);
      break;
    case Statement::Kind::print:
      out.append(text_of(evaluate(*statement.expression)));
      break;
    case Statement::Kind::branch:
      return run(evaluate(*statement.expression).truthy() ? statement.body : statement.otherwise,
                 out);
    case Statement::Kind::loop:
      return run_loop(statement, out);
    case Statement::Kind::assign:
      assign(statement.target, evaluate(*statement.expression));
      break;
    case Statement::Kind::assign_block: {
      SourcedText captured;
      frames_.emplace_back();
      const Flow flow = run(statement.body, captured);
      frames_.pop_back();
      if (flow != Flow::next) return flow;
      assign(statement.target, string(std::move(captured)));
      break;
    }
    case Statement::Kind::macro:
      assign_one(statement.name, Value(Value::Held(Macro{&statement})));
      break;
    case Statement::Kind::scope: {
      Variables variables;
      for (const auto& [name, value] : statement.parameters)
        variables.emplace_back(name, evaluate(*value));
      frames_.push_back(std::move(variables));
      const Flow flow = run(statement.body, out);
      frames_.pop_back();
      return flow;
    }
    case Statement::Kind::break_loop:
      return Flow::break_loop;
    case Statement::Kind::continue_loop:
      return Flow::continue_loop;
  }
  return Flow::next;
}

Evaluation::Flow Evaluation::run_loop(const Statement& loop, SourcedText& out) {
  std::vector<Value> items = iterate(evaluate(*loop.expression));
  if (loop.condition) {
    std::erase_if(items, [&](const Value& item) {
      frames_.emplace_back();
      assign(loop.target, item);
      const bool keep = evaluate(*loop.condition).truthy();
      frames_.pop_back();
      return !keep;
    });
  }
  if (items.empty()) return run(loop.otherwise, out);
  const auto count = static_cast<int64_t>(items.size());
  for (int64_t i = 0; i < count; ++i) {
    charge(12);  // about as many steps as the loop variable takes to make
    frames_.emplace_back();
    const auto item_or_undefined = [&](int64_t at, const char* name) {
      return at < 0 || at >= count ? Value::undefined(name) : items[static_cast<size_t>(at)];
    };
    std::vector<std::pair<SourcedText, Value>> members;
    const auto add = [&](const char* name, Value value) {
      members.emplace_back(SourcedText(name, TextSource::chat_template), std::move(value));
    };
    add("index", Value::integer(i + 1));
    add("index0", Value::integer(i));
    add("revindex", Value::integer(count - i));
    add("revindex0", Value::integer(count - i - 1));
    add("first", Value::boolean(i == 0));
    add("last", Value::boolean(i + 1 == count));
    add("length", Value::integer(count));
    add("previtem", item_or_undefined(i - 1, "previtem"));
    add("nextitem", item_or_undefined(i + 1, "nextitem"));
    assign_one("loop", Value::dict(std::move(members)));
    assign(loop.target, items[static_cast<size_t>(i)]);
    const Flow flow = run(loop.body, out);
    frames_.pop_back();
    if (flow == Flow::break_loop) break;
  }
  return Flow::next;
}

void Evaluation::assign(const Target& target, const Value& value) {
  if (!target.attribute.empty()) {
    const Value holder = evaluate_name(target.names[0]);
    const auto* ns = holder.get<Namespace>();
    if (ns == nullptr) fail(fmt::format("'{}' is no namespace", target.names[0]));
    expect_storable(value);
    charge(1 + ns->members->members.size() / 4);
    ns->members->set(SourcedText(target.attribute, TextSource::chat_template), value);
  } else if (target.names.size() == 1) {
    assign_one(target.names[0], value);
  } else {
    const std::vector<Value> parts = iterate(value);
    if (parts.size() != target.names.size()) {
      fail(fmt::format("{} values for {} names", parts.size(), target.names.size()));
    }
    for (size_t i = 0; i < parts.size(); ++i) assign_one(target.names[i], parts[i]);
  }
}

void Evaluation::assign_one(const std::string& name, Value value) {
  for (auto& [known, held] : frames_.back()) {
    if (known == name) {
      held = std::move(value);
      return;
    }
  }
  frames_.back().emplace_back(name, std::move(value));
}

// ---- expressions ----

Value Evaluation::evaluate_name(const std::string& name) {
  const auto find_in = [&](const Variables& frame) -> const Value* {
    for (const auto& [known, value] : frame) {
      if (known == name) return &value;
    }
    return nullptr;
  };
  for (size_t i = frames_.size(); i-- > visible_from_;) {
    if (const Value* value = find_in(frames_[i])) return *value;
  }
  if (const Value* value = find_in(frames_[1])) return *value;
  if (const Value* value = find_in(frames_[0])) return *value;
  return Value::undefined(name);
}

Value Evaluation::evaluate(const Expression& expression) {
  using Kind = Expression::Kind;
  const Descent descent(*this);
  charge(1);
  line_ = expression.line;
  const auto child = [&](size_t i) { return evaluate(*expression.children[i]); };
  switch (expression.kind) {
    case Kind::literal:
      return expression.value;
    case Kind::name:
      return evaluate_name(expression.text);
    case Kind::list: {
      std::vector<Value> items;
      for (const auto& element : expression.children) items.push_back(evaluate(*element));
      return list(std::move(items));
    }
    case Kind::dict:
      return evaluate_dict(expression);
    case Kind::attribute:
      return attribute(child(0), expression.text);
    case Kind::item: {
      const Value object = child(0);
      return item(object, child(1));
    }
    case Kind::slice:
      return evaluate_slice(expression);
    case Kind::call:
      return evaluate_call(expression);
    case Kind::builtin: {
      const Value subject = child(0);
      const Arguments arguments = evaluate_arguments(expression);
      line_ = expression.line;
      return expression.function(*this, subject, arguments);
    }
    case Kind::negate:
      return arithmetic("-", Value::integer(0), child(0));
    case Kind::plus:
      return arithmetic("+", Value::integer(0), child(0));
    case Kind::logical_not:
      return Value::boolean(!child(0).truthy());
    case Kind::logical_and: {
      Value left = child(0);
      return left.truthy() ? child(1) : left;
    }
    case Kind::logical_or: {
      Value left = child(0);
      return left.truthy() ? left : child(1);
    }
    case Kind::arithmetic: {
      const Value left = child(0);
      return arithmetic(expression.text, left, child(1));
    }
    case Kind::concat:
      return evaluate_concat(expression);
    case Kind::compare: {
      const Value left = child(0);
      return Value::boolean(compare(expression.text, left, child(1)));
    }
    case Kind::compare_chain:
      return evaluate_chain(expression);
    case Kind::conditional:
      if (child(0).truthy()) return child(1);
      return expression.children[2] ? child(2) : Value::undefined("else");
  }
  return {};
}

Value Evaluation::evaluate_dict(const Expression& expression) {
  Dict dict;
  for (size_t i = 0; i + 1 < expression.children.size(); i += 2) {
    const Value key = evaluate(*expression.children[i]);
    if (key.text() == nullptr) unsupported(fmt::format("a {} as a key", key.type_name()));
    Value value = evaluate(*expression.children[i + 1]);
    expect_storable(value);
    charge(1 + dict.members.size() / 4);
    dict.set(*key.text(), std::move(value));
  }
  return Value::dict(std::move(dict.members));
}

Value Evaluation::evaluate_concat(const Expression& expression) {
  SourcedText text;
  for (const auto& part : expression.children) text.append(text_of(evaluate(*part)));
  return string(std::move(text));
}

Value Evaluation::evaluate_slice(const Expression& expression) {
  const Value object = evaluate(*expression.children[0]);
  SliceBounds bounds;
  const auto read = [&](size_t i, std::optional<int64_t>& bound) {
    if (!expression.children[i]) return;
    const Value value = evaluate(*expression.children[i]);
    int64_t number = 0;
    if (value.is<None>()) return;
    if (!as_integer(value, number)) fail(fmt::format("a slice from a {}", value.type_name()));
    bound = number;
  };
  read(1, bounds.start);
  read(2, bounds.stop);
  read(3, bounds.step);
  if (bounds.step == 0) fail("a slice's step is zero");
  line_ = expression.line;
  if (const auto* items = object.items()) {
    std::vector<Value> result;
    for (const int64_t i : slice_indices(bounds, static_cast<int64_t>(items->size()))) {
      result.push_back((*items)[static_cast<size_t>(i)]);
    }
    return list(std::move(result));
  }
  if (object.text() == nullptr) fail(fmt::format("a {} cannot be sliced", object.type_name()));
  charge(1 + object.weight() / 8);
  return string(slice_text(*object.text(), bounds));
}

Value Evaluation::evaluate_chain(const Expression& expression) {
  Value left = evaluate(*expression.children[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.children[i + 1]);
    if (!compare(expression.operators[i], left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

bool Evaluation::compare(const std::string& op, const Value& a, const Value& b) {
  if (op == "==" || op == "!=") {
    charge(std::min(a.weight(), b.weight()) / 8);
    return equal(a, b) == (op == "==");
  }
  if (op == "in") return contains(b, a);
  if (op == "not in") return !contains(b, a);
  for (const Value* side : {&a, &b}) {
    if (const auto* undefined = side->get<Undefined>()) {
      fail(fmt::format("'{}' is undefined", undefined->name));
    }
  }
  if (op == "<") return less(a, b);
  if (op == ">") return less(b, a);
  if (op == "<=") return !less(b, a);
  return !less(a, b);
}

Value Evaluation::repeat(const Value& sequence, int64_t count) {
  if (count > static_cast<int64_t>(kMaxWork))
    fail(fmt::format("a sequence repeated {} times", count));
  const auto times = static_cast<size_t>(std::max<int64_t>(count, 0));
  if (const SourcedText* text = sequence.text()) {
    SourcedText result;
    for (size_t i = 0; i < times; ++i) {
      charge(1 + text->size() / 8);
      result.append(*text);
    }
    return string(std::move(result));
  }
  std::vector<Value> result;
  for (size_t i = 0; i < times; ++i) {
    charge(sequence.items()->size());
    result.insert(result.end(), sequence.items()->begin(), sequence.items()->end());
  }
  return list(std::move(result));
}

Value Evaluation::integer_arithmetic(const std::string& op, int64_t a, int64_t b,
                                     TextSource source) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else {  // "//" or "%", rounded towards minus infinity as Python does
    if (b == 0) fail("division by zero");
    if (b == -1) return integer_arithmetic("*", op == "%" ? 0 : a, -1, source);
    const int64_t quotient = a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
    result = op == "//" ? quotient : a - quotient * b;
  }
  if (overflow) unsupported("an integer beyond 64 bits");
  return Value::integer(result, source);
}

Value Evaluation::arithmetic(const std::string& op, const Value& a, const Value& b) {
  for (const Value* side : {&a, &b}) {
    if (const auto* undefined = side->get<Undefined>()) {
      fail(fmt::format("'{}' is undefined", undefined->name));
    }
  }
  int64_t x = 0;
  int64_t y = 0;
  const bool left_integer = as_integer(a, x);
  const bool right_integer = as_integer(b, y);
  if (left_integer && right_integer && op != "/" && op != "**") {
    return integer_arithmetic(op, x, y, joined(a, b));
  }
  if (a.is_number() && b.is_number()) {
    const double p = as_double(a);
    const double q = as_double(b);
    const bool divides = op == "/" || op == "//" || op == "%";
    if (divides && q == 0) fail("division by zero");
    if (op == "**") {
      const double power = std::pow(p, q);
      if (left_integer && right_integer && y >= 0) {
        constexpr double kExact = 9007199254740992.0;  // 2^53
        if (std::fabs(power) > kExact) unsupported("a power beyond 2^53");
        return Value::integer(static_cast<int64_t>(power), joined(a, b));
      }
      return Value(Value::Held(power), joined(a, b));
    }
    const double result = op == "+"    ? p + q
                          : op == "-"  ? p - q
                          : op == "*"  ? p * q
                          : op == "/"  ? p / q
                          : op == "//" ? std::floor(p / q)
                                       : p - std::floor(p / q) * q;
    return Value(Value::Held(result), joined(a, b));
  }
  if (op == "+" && a.text() != nullptr && b.text() != nullptr) {
    SourcedText text = *a.text();
    text.append(SourcedText(*b.text()));
    return string(std::move(text));
  }
  if (op == "+" && a.items() != nullptr && b.items() != nullptr) {
    std::vector<Value> items = *a.items();
    items.insert(items.end(), b.items()->begin(), b.items()->end());
    return list(std::move(items));
  }
  if (op == "*" && is_sequence(a) && right_integer) return repeat(a, y);
  if (op == "*" && left_integer && is_sequence(b)) return repeat(b, x);
  if (op == "%" && a.text() != nullptr) unsupported("formatting with \"%\"");
  fail(fmt::format("\"{}\" between a {} and a {}", op, a.type_name(), b.type_name()));
}

// ---- calls ----

Arguments Evaluation::evaluate_arguments(const Expression& call) {
  Arguments arguments;
  for (size_t i = 1; i < call.children.size(); ++i)
    arguments.positional.push_back(evaluate(*call.children[i]));
  for (const auto& [name, value] : call.named) arguments.named.emplace_back(name, evaluate(*value));
  return arguments;
}

Value Evaluation::evaluate_call(const Expression& expression) {
  const Expression& callee = *expression.children[0];
  const Value function = evaluate(callee);
  const Arguments arguments = evaluate_arguments(expression);
  line_ = expression.line;
  if (const auto* macro = function.get<Macro>()) return call_macro(*macro->definition, arguments);
  if (function.is<Undefined>() && callee.kind == Expression::Kind::name) {
    return call_global(callee.text, arguments);
  }
  fail(fmt::format("a {} is called", function.type_name()));
}

Value Evaluation::make_range(const Arguments& arguments) {
  constexpr int64_t kMaxRange = 100'000;
  int64_t start = integer_argument(arguments, 0, "start", 0);
  int64_t stop = integer_argument(arguments, 1, "stop", 0);
  const int64_t step = integer_argument(arguments, 2, "step", 1);
  if (arguments.positional.size() < 2) stop = std::exchange(start, 0);
  constexpr int64_t kLargest = int64_t{1} << 60;
  for (const int64_t bound : {start, stop, step}) {
    if (bound < -kLargest || bound > kLargest) unsupported("a range() beyond 60 bits");
  }
  if (step == 0) fail("range() has a step of zero");
  std::vector<Value> items;
  const auto distance = static_cast<double>(stop) - static_cast<double>(start);
  if (distance / static_cast<double>(step) > static_cast<double>(kMaxRange)) {
    fail(fmt::format("range() gives more than {} numbers", kMaxRange));
  }
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step)
    items.push_back(Value::integer(i));
  return list(std::move(items));
}

Value Evaluation::call_global(const std::string& name, const Arguments& arguments) {
  if (name == "range") return make_range(arguments);
  if (name == "raise_exception") {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("the chat template refuses the conversation: {}",
                    arguments.positional.empty() ? "" : text_of(arguments.positional[0]).text()));
  }
  if (name == "namespace" || name == "dict") {
    Dict dict;
    if (!arguments.positional.empty()) {
      const Dict* base = arguments.positional[0].members();
      if (base == nullptr) unsupported(fmt::format("{}() of this argument", name));
      dict = *base;
    }
    for (const auto& [key, value] : arguments.named) {
      expect_storable(value);
      dict.set(SourcedText(key, TextSource::chat_template), value);
    }
    if (name == "dict") return Value::dict(std::move(dict.members));
    return Value(Value::Held(Namespace{std::make_shared<Dict>(std::move(dict))}));
  }
  if (name == "strftime_now") {
    const std::string format = text_argument(arguments, 0, "format").text();
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    std::string buffer(256, '\0');
    buffer.resize(std::strftime(buffer.data(), buffer.size(), format.c_str(), &local));
    return string(SourcedText(buffer, TextSource::chat_template));
  }
  fail(fmt::format("'{}' is undefined", name));
}

Value Evaluation::call_macro(const Statement& macro, const Arguments& arguments) {
  if (arguments.positional.size() > macro.parameters.size()) {
    fail(fmt::format("macro \"{}\" takes {} arguments", macro.name, macro.parameters.size()));
  }
  for (const auto& given : arguments.named) {
    const bool known =
        std::any_of(macro.parameters.begin(), macro.parameters.end(),
                    [&](const auto& parameter) { return parameter.first == given.first; });
    if (!known) fail(fmt::format("macro \"{}\" has no parameter \"{}\"", macro.name, given.first));
  }
  const Descent descent(*this);
  const size_t outer = std::exchange(visible_from_, frames_.size());
  frames_.emplace_back();
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const auto& [name, fallback] = macro.parameters[i];
    const Value* given = argument(arguments, i, name);
    assign_one(name, given != nullptr ? *given
                     : fallback       ? evaluate(*fallback)
                                      : Value::undefined(name));
  }
  SourcedText out;
  run(macro.body, out);
  frames_.pop_back();
  visible_from_ = outer;
  return string(std::move(out));
}

}  // namespace glimpse::jinja
