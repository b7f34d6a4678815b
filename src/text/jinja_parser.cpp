// Recursive descent with Jinja's own order of precedence. Depth is bounded: the source comes from a
// checkpoint that nobody has vouched for.
#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>

#include <fmt/format.h>

#include "text/jinja_lexer.h"
#include "text/jinja_syntax.h"

namespace glimpse::jinja {
namespace {

using Kind = Expression::Kind;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Body parse() {
    Body body = parse_body({});
    if (current().kind != Token::Kind::end_of_source) fail("unexpected end of a block");
    return body;
  }

 private:
  // ---- tokens ----

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::bad_model,
                fmt::format("chat template, line {}: {}", current().line, what));
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorCode::unsupported,
                fmt::format("chat template, line {}: {} is not supported", current().line, what));
  }

  [[nodiscard]] const Token& current() const { return tokens_[at_]; }
  [[nodiscard]] const Token& ahead() const {
    return tokens_[std::min(at_ + 1, tokens_.size() - 1)];
  }
  Token take() {
    Token token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  [[nodiscard]] static bool is_symbol(const Token& token, std::string_view text) {
    return token.kind == Token::Kind::symbol && token.text == text;
  }
  [[nodiscard]] static bool is_word(const Token& token, std::string_view text) {
    return token.kind == Token::Kind::name && token.text == text;
  }
  bool take_symbol(std::string_view text) {
    if (!is_symbol(current(), text)) return false;
    take();
    return true;
  }
  bool take_word(std::string_view text) {
    if (!is_word(current(), text)) return false;
    take();
    return true;
  }
  void expect_symbol(std::string_view text) {
    if (!take_symbol(text)) fail(fmt::format("expected \"{}\"", text));
  }
  void expect_word(std::string_view text) {
    if (!take_word(text)) fail(fmt::format("expected \"{}\"", text));
  }
  void expect(Token::Kind kind, std::string_view what) {
    if (current().kind != kind) fail(fmt::format("expected {}", what));
    take();
  }
  std::string take_name() {
    constexpr std::array<std::string_view, 8> kReserved = {"and", "or",   "not", "in",
                                                           "is",  "else", "if",  "elif"};
    if (current().kind != Token::Kind::name) fail("expected a name");
    if (std::find(kReserved.begin(), kReserved.end(), current().text) != kReserved.end()) {
      fail(fmt::format("\"{}\" is no name", current().text));
    }
    return take().text;
  }

  /// Counts how deep the descent is, for as long as it lives.
  class Descent {
   public:
    explicit Descent(Parser& parser) : parser_(parser) {
      constexpr int kMaxDepth = 200;
      if (++parser_.depth_ > kMaxDepth) {
        parser_.unsupported(fmt::format("nesting deeper than {} levels", kMaxDepth));
      }
    }
    ~Descent() { --parser_.depth_; }
    Descent(const Descent&) = delete;
    Descent& operator=(const Descent&) = delete;

   private:
    Parser& parser_;
  };

  // ---- statements ----

  /// Statements up to a block that begins with one of `ends` (left unread but for its "{%").
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Descent descent(*this);
    Body body;
    for (;;) {
      const Token& token = current();
      if (token.kind == Token::Kind::end_of_source) {
        if (ends.size() > 0) fail(fmt::format("\"{}\" is missing", *(ends.end() - 1)));
        return body;
      }
      if (token.kind == Token::Kind::data) {
        auto statement = begin(Statement::Kind::data);
        statement->text = SourcedText(take().text, TextSource::chat_template);
        body.push_back(std::move(statement));
      } else if (token.kind == Token::Kind::begin_print) {
        take();
        auto statement = begin(Statement::Kind::print);
        statement->expression = parse_tuple();
        expect(Token::Kind::end_print, "\"}}\"");
        body.push_back(std::move(statement));
      } else {
        expect(Token::Kind::begin_block, "a tag");
        if (std::any_of(ends.begin(), ends.end(),
                        [&](auto end) { return is_word(current(), end); })) {
          return body;
        }
        if (auto statement = parse_block()) body.push_back(std::move(statement));
      }
    }
  }

  [[nodiscard]] std::unique_ptr<Statement> begin(Statement::Kind kind) const {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = current().line;
    return statement;
  }
  void end_block() { expect(Token::Kind::end_block, "\"%}\""); }

  std::unique_ptr<Statement> parse_block() {
    if (current().kind != Token::Kind::name) fail("expected a statement");
    const std::string& word = current().text;
    if (word == "if") return parse_if();
    if (word == "for") return parse_for();
    if (word == "set") return parse_set();
    if (word == "macro") return parse_macro();
    if (word == "with") return parse_with();
    if (word == "break" || word == "continue") {
      if (loops_ == 0) fail(fmt::format("\"{}\" outside a loop", word));
      auto statement =
          begin(word == "break" ? Statement::Kind::break_loop : Statement::Kind::continue_loop);
      take();
      end_block();
      return statement;
    }
    if (word == "generation") {  // marks what a trainer learns from; the text is ordinary
      auto statement = begin(Statement::Kind::scope);
      take();
      end_block();
      statement->body = parse_body({"endgeneration"});
      take();
      end_block();
      return statement;
    }
    if (word.starts_with("end") || word == "else" || word == "elif") {
      fail(fmt::format("unexpected \"{}\"", word));
    }
    unsupported(fmt::format("the statement \"{}\"", word));
  }

  std::unique_ptr<Statement> parse_if() {
    const Descent descent(*this);
    auto statement = begin(Statement::Kind::branch);
    take();  // "if" or "elif"
    statement->expression = parse_tuple();
    end_block();
    statement->body = parse_body({"elif", "else", "endif"});
    if (is_word(current(), "elif")) {
      statement->otherwise.push_back(parse_if());
      return statement;
    }
    if (take_word("else")) {
      end_block();
      statement->otherwise = parse_body({"endif"});
    }
    take();
    end_block();
    return statement;
  }

  std::unique_ptr<Statement> parse_for() {
    auto statement = begin(Statement::Kind::loop);
    take();
    statement->target = parse_names();
    expect_word("in");
    statement->expression = parse_tuple_of([&] { return parse_or(); });
    if (take_word("if")) statement->condition = parse_expression();
    if (is_word(current(), "recursive")) unsupported("a recursive loop");
    end_block();
    ++loops_;
    statement->body = parse_body({"else", "endfor"});
    --loops_;
    if (take_word("else")) {
      end_block();
      statement->otherwise = parse_body({"endfor"});
    }
    take();
    end_block();
    return statement;
  }

  Target parse_names() {
    Target target;
    const bool bracket = take_symbol("(");
    do {
      if (bracket && is_symbol(current(), ")")) break;
      target.names.push_back(take_name());
    } while (take_symbol(","));
    if (bracket) expect_symbol(")");
    return target;
  }

  std::unique_ptr<Statement> parse_set() {
    auto statement = begin(Statement::Kind::assign);
    take();
    statement->target = parse_names();
    if (statement->target.names.size() == 1 && take_symbol(".")) {
      statement->target.attribute = take_name();
    }
    if (take_symbol("=")) {
      statement->expression = parse_tuple();
      end_block();
      return statement;
    }
    if (is_symbol(current(), "|")) unsupported("a filter on a set block");
    end_block();
    statement->kind = Statement::Kind::assign_block;
    statement->body = parse_body({"endset"});
    take();
    end_block();
    return statement;
  }

  std::unique_ptr<Statement> parse_macro() {
    auto statement = begin(Statement::Kind::macro);
    // A macro inside another scope would close over variables that may be gone when it is called.
    if (depth_ > 1) unsupported("a macro inside another block");
    take();
    statement->name = take_name();
    expect_symbol("(");
    while (!take_symbol(")")) {
      std::string name = take_name();
      ExpressionPtr fallback = take_symbol("=") ? parse_expression() : nullptr;
      statement->parameters.emplace_back(std::move(name), std::move(fallback));
      if (!take_symbol(",") && !is_symbol(current(), ")")) fail("expected \")\"");
    }
    end_block();
    const int outer_loops = std::exchange(loops_, 0);
    statement->body = parse_body({"endmacro"});
    loops_ = outer_loops;
    take();
    if (current().kind == Token::Kind::name) take();
    end_block();
    return statement;
  }

  std::unique_ptr<Statement> parse_with() {
    auto statement = begin(Statement::Kind::scope);
    take();
    while (current().kind == Token::Kind::name) {
      std::string name = take_name();
      expect_symbol("=");
      statement->parameters.emplace_back(std::move(name), parse_expression());
      if (!take_symbol(",")) break;
    }
    end_block();
    statement->body = parse_body({"endwith"});
    take();
    end_block();
    return statement;
  }

  // ---- expressions ----

  [[nodiscard]] ExpressionPtr make(Kind kind, std::string text = {}) const {
    auto expression = std::make_unique<Expression>();
    expression->kind = kind;
    expression->line = current().line;
    expression->text = std::move(text);
    return expression;
  }
  template <typename... Children>
  [[nodiscard]] ExpressionPtr make_of(Kind kind, std::string text, Children... children) const {
    ExpressionPtr expression = make(kind, std::move(text));
    (adopt(*expression, std::move(children)), ...);
    return expression;
  }
  /// Makes `child` the last child. Chains of operators make trees as deep as they are long, and
  /// what walks a tree recurses: depth is bounded here for all of them.
  void adopt(Expression& parent, ExpressionPtr child) const {
    deepen(parent, child.get());
    parent.children.push_back(std::move(child));
  }
  void deepen(Expression& parent, const Expression* child) const {
    constexpr int kMaxDepth = 500;
    if (child == nullptr) return;
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxDepth) {
      unsupported(fmt::format("an expression nested deeper than {} levels", kMaxDepth));
    }
  }
  [[nodiscard]] ExpressionPtr make_literal(Value value) const {
    ExpressionPtr expression = make(Kind::literal);
    expression->value = std::move(value);
    return expression;
  }

  /// One expression, or several with commas between them as a list.
  template <typename ParseOne>
  ExpressionPtr parse_tuple_of(ParseOne parse_one) {
    ExpressionPtr first = parse_one();
    if (!is_symbol(current(), ",")) return first;
    ExpressionPtr tuple = make_of(Kind::list, "", std::move(first));
    while (take_symbol(",")) {
      const Token::Kind next = current().kind;
      if (next == Token::Kind::end_print || next == Token::Kind::end_block ||
          is_symbol(current(), ")")) {
        break;
      }
      adopt(*tuple, parse_one());
    }
    return tuple;
  }
  ExpressionPtr parse_tuple() {
    return parse_tuple_of([&] { return parse_expression(); });
  }

  ExpressionPtr parse_expression() {
    const Descent descent(*this);
    ExpressionPtr value = parse_or();
    while (take_word("if")) {
      ExpressionPtr condition = parse_or();
      ExpressionPtr otherwise = take_word("else") ? parse_expression() : nullptr;
      value = make_of(Kind::conditional, "", std::move(condition), std::move(value),
                      std::move(otherwise));
    }
    return value;
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (take_word("or")) {
      left = make_of(Kind::logical_or, "", std::move(left), parse_and());
    }
    return left;
  }
  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (take_word("and")) {
      left = make_of(Kind::logical_and, "", std::move(left), parse_not());
    }
    return left;
  }
  ExpressionPtr parse_not() {
    const Descent descent(*this);
    if (take_word("not")) return make_of(Kind::logical_not, "", parse_not());
    return parse_compare();
  }

  /// The comparison operator that stands here, consumed; empty when there is none.
  std::string take_comparison() {
    constexpr std::array<std::string_view, 6> kOperators = {"==", "!=", "<", ">", "<=", ">="};
    if (current().kind == Token::Kind::symbol &&
        std::find(kOperators.begin(), kOperators.end(), current().text) != kOperators.end()) {
      return take().text;
    }
    if (take_word("in")) return "in";
    if (is_word(current(), "not") && is_word(ahead(), "in")) {
      take();
      take();
      return "not in";
    }
    return {};
  }

  ExpressionPtr parse_compare() {
    ExpressionPtr left = parse_sum();
    std::string first = take_comparison();
    if (first.empty()) return left;
    ExpressionPtr result = make_of(Kind::compare, first, std::move(left), parse_sum());
    for (std::string next = take_comparison(); !next.empty(); next = take_comparison()) {
      if (result->kind == Kind::compare) result->operators.push_back(first);
      result->kind = Kind::compare_chain;
      result->operators.push_back(next);
      adopt(*result, parse_sum());
    }
    return result;
  }

  bool at_operator(std::initializer_list<std::string_view> operators) const {
    return current().kind == Token::Kind::symbol &&
           std::find(operators.begin(), operators.end(), current().text) != operators.end();
  }

  ExpressionPtr parse_sum() {
    ExpressionPtr left = parse_concat();
    while (at_operator({"+", "-"})) {
      std::string op = take().text;
      left = make_of(Kind::arithmetic, std::move(op), std::move(left), parse_concat());
    }
    return left;
  }
  ExpressionPtr parse_concat() {
    ExpressionPtr left = parse_product();
    if (!is_symbol(current(), "~")) return left;
    ExpressionPtr result = make_of(Kind::concat, "", std::move(left));
    while (take_symbol("~")) adopt(*result, parse_product());
    return result;
  }
  ExpressionPtr parse_product() {
    ExpressionPtr left = parse_power();
    while (at_operator({"*", "/", "//", "%"})) {
      std::string op = take().text;
      left = make_of(Kind::arithmetic, std::move(op), std::move(left), parse_power());
    }
    return left;
  }
  ExpressionPtr parse_power() {
    ExpressionPtr left = parse_unary();
    while (take_symbol("**")) {
      left = make_of(Kind::arithmetic, "**", std::move(left), parse_unary());
    }
    return left;
  }
  ExpressionPtr parse_unary() { return parse_filters(parse_signed()); }

  ExpressionPtr parse_signed() {
    const Descent descent(*this);
    if (take_symbol("-")) return make_of(Kind::negate, "", parse_signed());
    if (take_symbol("+")) return make_of(Kind::plus, "", parse_signed());
    return parse_postfix(parse_primary());
  }

  ExpressionPtr parse_primary() {
    const Token token = current();
    switch (token.kind) {
      case Token::Kind::name:
        return parse_name();
      case Token::Kind::string: {
        std::string text;
        while (current().kind == Token::Kind::string) text += take().text;
        return make_literal(Value::string(std::move(text), TextSource::chat_template));
      }
      case Token::Kind::integer: {
        int64_t value = 0;
        const char* end = token.text.data() + token.text.size();
        if (std::from_chars(token.text.data(), end, value).ec != std::errc()) {
          unsupported(fmt::format("the number {}", token.text));
        }
        take();
        return make_literal(Value::integer(value));
      }
      case Token::Kind::real: {
        double value = 0;
        const char* end = token.text.data() + token.text.size();
        if (std::from_chars(token.text.data(), end, value).ec != std::errc()) {
          unsupported(fmt::format("the number {}", token.text));
        }
        take();
        return make_literal(Value(Value::Held(value)));
      }
      default:
        break;
    }
    if (take_symbol("(")) {
      if (take_symbol(")")) return make(Kind::list);
      ExpressionPtr inner = parse_tuple();
      expect_symbol(")");
      return inner;
    }
    if (take_symbol("[")) return parse_list();
    if (take_symbol("{")) return parse_dict();
    fail(token.text.empty() ? "expected an expression"
                            : fmt::format("expected an expression before \"{}\"", token.text));
  }

  ExpressionPtr parse_name() {
    const std::string name = take_name();
    if (name == "true" || name == "True") return make_literal(Value::boolean(true));
    if (name == "false" || name == "False") return make_literal(Value::boolean(false));
    if (name == "none" || name == "None") return make_literal(Value::none());
    for (const std::string_view unknown :
         {"lipsum", "cycler", "joiner", "caller", "varargs", "kwargs"}) {
      if (name == unknown) unsupported(fmt::format("\"{}\"", name));
    }
    return make(Kind::name, name);
  }

  ExpressionPtr parse_list() {
    ExpressionPtr list = make(Kind::list);
    while (!take_symbol("]")) {
      adopt(*list, parse_expression());
      if (!take_symbol(",") && !is_symbol(current(), "]")) fail("expected \"]\"");
    }
    return list;
  }

  ExpressionPtr parse_dict() {
    ExpressionPtr dict = make(Kind::dict);
    while (!take_symbol("}")) {
      adopt(*dict, parse_expression());
      expect_symbol(":");
      adopt(*dict, parse_expression());
      if (!take_symbol(",") && !is_symbol(current(), "}")) fail("expected \"}\"");
    }
    return dict;
  }

  ExpressionPtr parse_postfix(ExpressionPtr value) {
    for (;;) {
      if (take_symbol(".")) {
        value = parse_attribute(std::move(value));
      } else if (take_symbol("[")) {
        value = parse_subscript(std::move(value));
      } else if (is_symbol(current(), "(")) {
        value = make_of(Kind::call, "", std::move(value));
        parse_arguments(*value);
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_attribute(ExpressionPtr object) {
    if (current().kind == Token::Kind::integer) {
      ExpressionPtr index = parse_primary();
      return make_of(Kind::item, "", std::move(object), std::move(index));
    }
    if (current().kind != Token::Kind::name) fail("expected an attribute's name");
    const std::string name = take().text;
    if (!is_symbol(current(), "(")) return make_of(Kind::attribute, name, std::move(object));
    // Namespaces and loops have members that can be called, too; a dict's own are methods.
    ExpressionPtr call = make_of(Kind::builtin, name, std::move(object));
    call->function = find_method(name);
    if (call->function == nullptr) unsupported(fmt::format("the method \"{}\"", name));
    parse_arguments(*call);
    return call;
  }

  ExpressionPtr parse_subscript(ExpressionPtr object) {
    ExpressionPtr start;
    if (!is_symbol(current(), ":")) {
      start = parse_expression();
      if (take_symbol("]")) return make_of(Kind::item, "", std::move(object), std::move(start));
    }
    std::array<ExpressionPtr, 2> rest;  // stop, step
    for (ExpressionPtr& part : rest) {
      if (!take_symbol(":")) break;
      if (!is_symbol(current(), ":") && !is_symbol(current(), "]")) part = parse_expression();
    }
    expect_symbol("]");
    return make_of(Kind::slice, "", std::move(object), std::move(start), std::move(rest[0]),
                   std::move(rest[1]));
  }

  void parse_arguments(Expression& call) {
    expect_symbol("(");
    while (!take_symbol(")")) {
      if (at_operator({"*", "**"})) unsupported("unpacking of arguments");
      if (current().kind == Token::Kind::name && is_symbol(ahead(), "=")) {
        std::string name = take().text;
        take();
        call.named.emplace_back(std::move(name), parse_expression());
        deepen(call, call.named.back().second.get());
      } else {
        if (!call.named.empty()) fail("a positional argument follows a named one");
        adopt(call, parse_expression());
      }
      if (!take_symbol(",") && !is_symbol(current(), ")")) fail("expected \")\"");
    }
  }

  /// Filters and tests after a value.
  ExpressionPtr parse_filters(ExpressionPtr value) {
    for (;;) {
      if (take_symbol("|")) {
        const std::string name = take_name();
        ExpressionPtr filter = make_of(Kind::builtin, name, std::move(value));
        filter->function = find_filter(name);
        if (filter->function == nullptr) unsupported(fmt::format("the filter \"{}\"", name));
        if (is_symbol(current(), "(")) parse_arguments(*filter);
        value = std::move(filter);
      } else if (take_word("is")) {
        value = parse_test(std::move(value));
      } else if (is_symbol(current(), "(")) {
        value = make_of(Kind::call, "", std::move(value));
        parse_arguments(*value);
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_test(ExpressionPtr value) {
    const bool negated = take_word("not");
    // "in", "none" and the comparison words are names here.
    if (current().kind != Token::Kind::name) fail("expected the name of a test");
    const std::string name = take().text;
    ExpressionPtr test = make_of(Kind::builtin, name, std::move(value));
    test->function = find_test(name);
    if (test->function == nullptr) unsupported(fmt::format("the test \"{}\"", name));
    if (is_symbol(current(), "(")) {
      parse_arguments(*test);
    } else if (starts_test_argument()) {
      adopt(*test, parse_postfix(parse_primary()));
    }
    return negated ? make_of(Kind::logical_not, "", std::move(test)) : std::move(test);
  }

  bool starts_test_argument() const {
    switch (current().kind) {
      case Token::Kind::string:
      case Token::Kind::integer:
      case Token::Kind::real:
        return true;
      case Token::Kind::symbol:
        return current().text == "[" || current().text == "{";
      case Token::Kind::name: {
        constexpr std::array<std::string_view, 8> kAfterTest = {"else", "or", "and", "if",
                                                                "is",   "in", "not", "recursive"};
        return std::find(kAfterTest.begin(), kAfterTest.end(), current().text) == kAfterTest.end();
      }
      default:
        return false;
    }
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) {
  return Parser(tokenize(source)).parse();
}

}  // namespace glimpse::jinja
