#include "text/json_schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "random_schemas.h"
#include "test_tokenizers.h"
#include "text/answer_grammar.h"
#include "text/grammar_constraint.h"

namespace glimpse {
namespace {

using testing::demo_tokenizer;
using ::testing::HasSubstr;

const TokenId kStop = demo_tokenizer().find("<|im_end|>");

std::shared_ptr<const TokenIndex> demo_index() {
  static const auto index =
      std::make_shared<const TokenIndex>(demo_tokenizer(), demo_tokenizer().vocabulary_size() + 5);
  return index;
}

std::shared_ptr<GrammarMasks> masks_of(Grammar grammar) {
  return std::make_shared<GrammarMasks>(std::move(grammar), demo_index(),
                                        std::vector<TokenId>{kStop});
}
std::shared_ptr<GrammarMasks> masks_of(std::string_view schema) {
  return masks_of(compile_json_schema(Json::parse(schema)));
}

/// Whether `text` is a whole answer, byte by byte.
bool accepts(const Grammar& grammar, std::string_view text) {
  GrammarMatcher matcher(grammar);
  GrammarPositions positions = matcher.start();
  GrammarPositions next;
  for (const char c : text) {
    matcher.step(positions, static_cast<uint8_t>(c), next);
    std::swap(positions, next);
  }
  return GrammarMatcher::is_complete(positions);
}
bool accepts(std::string_view schema, std::string_view text) {
  return accepts(compile_json_schema(Json::parse(schema)), text);
}

void expect_refused(std::string_view schema, ErrorCode code, std::string_view part) {
  try {
    static_cast<void>(compile_json_schema(Json::parse(schema)));
    FAIL() << schema << " was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(std::string(part)));
  }
}

// ---- random answers ---------------------------------------------------------------------------

TEST(JsonSchema, TwoHundredRandomSchemasAlwaysGiveValidJson) {
  testing::SchemaMaker maker(20261123);
  for (int i = 0; i < 200; ++i) {
    const Json schema = maker.document();
    SCOPED_TRACE(schema.dump());
    const auto masks = masks_of(compile_json_schema(schema));
    for (int walk = 0; walk < 3; ++walk) {
      GrammarConstraint constraint(masks);
      const std::string text =
          testing::random_answer(constraint, demo_tokenizer(), kStop, 60 * walk, maker.random(),
                                 [](std::span<const uint32_t>) {});
      const Json value = Json::parse(text, nullptr, false);
      ASSERT_FALSE(value.is_discarded()) << text;
      ASSERT_TRUE(testing::Validator(schema).accepts(value)) << text;
    }
  }
}

TEST(JsonSchema, AMaskAllowsExactlyTheTokensWhoseBytesTheGrammarFollows) {
  testing::SchemaMaker maker(7);
  for (int i = 0; i < 40; ++i) {
    const Json schema = maker.document();
    SCOPED_TRACE(schema.dump());
    const auto masks = masks_of(compile_json_schema(schema));
    GrammarPositions positions = masks->start();
    for (int step = 0; step < 40; ++step) {
      const auto mask = masks->mask(positions);
      std::vector<TokenId> allowed;
      for (TokenId token = 0; token < demo_tokenizer().vocabulary_size(); ++token) {
        const bool follows = !masks->after(positions, token).empty();
        ASSERT_EQ(testing::is_allowed(*mask, token),
                  token == kStop ? GrammarMatcher::is_complete(positions) : follows)
            << demo_tokenizer().token_bytes(token);
        if (follows) allowed.push_back(token);
      }
      if (allowed.empty()) break;
      positions = masks->after(positions, allowed[maker.below(allowed.size())]);
    }
  }
}

TEST(JsonSchema, AnyObjectIsValidJson) {
  std::mt19937 random(3);
  const auto masks =
      masks_of(compile_answer({.value = AnswerForm::Value::any_object}, demo_tokenizer()));
  for (int walk = 0; walk < 50; ++walk) {
    GrammarConstraint constraint(masks);
    const std::string text = testing::random_answer(constraint, demo_tokenizer(), kStop, 150,
                                                    random, [](std::span<const uint32_t>) {});
    EXPECT_TRUE(Json::parse(text, nullptr, false).is_object()) << text;
  }
}

TEST(JsonSchema, QwensVocabularyGivesValidJsonToo) {
  GLIMPSE_REQUIRE_FILE(testing::qwen_tokenizer_path());
  const Tokenizer tokenizer(testing::qwen_tokenizer_path());
  const TokenId stop = tokenizer.find("<|im_end|>");
  const auto index = std::make_shared<const TokenIndex>(tokenizer, 151'936);
  testing::SchemaMaker maker(99);
  for (int i = 0; i < 20; ++i) {
    const Json schema = maker.document();
    SCOPED_TRACE(schema.dump());
    GrammarConstraint constraint(std::make_shared<GrammarMasks>(compile_json_schema(schema), index,
                                                                std::vector<TokenId>{stop}));
    const std::string text = testing::random_answer(constraint, tokenizer, stop, 60, maker.random(),
                                                    [](std::span<const uint32_t>) {});
    ASSERT_TRUE(testing::Validator(schema).accepts(Json::parse(text, nullptr, false))) << text;
  }
}

// ---- what each keyword means --------------------------------------------------------------------

TEST(JsonSchema, MembersComeInTheSchemasOrderAndOptionalOnesMayBeLeftOut) {
  constexpr auto kSchema = R"({"type": "object", "properties": {"a": {"type": "null"},
    "b": {"type": "null"}, "c": {"type": "null"}}, "required": ["b"]})";
  EXPECT_TRUE(accepts(kSchema, R"({"a": null, "b": null, "c": null})"));
  EXPECT_TRUE(accepts(kSchema, R"({"b":null})"));
  EXPECT_TRUE(accepts(kSchema, "{\n  \"b\": null,\n  \"c\": null\n}"));
  EXPECT_FALSE(accepts(kSchema, R"({"b": null, "a": null})"));
  EXPECT_FALSE(accepts(kSchema, R"({"a": null})"));
  EXPECT_FALSE(accepts(kSchema, R"({"b": null,})"));
  EXPECT_FALSE(accepts(kSchema, R"({})"));
  EXPECT_FALSE(accepts(kSchema, R"({"b": null, "d": null})"));
}

TEST(JsonSchema, RequiredMembersThatAreNotListedMayBeAnything) {
  EXPECT_TRUE(accepts(R"({"required": ["x"]})", R"({"x": [1, {"y": "z"}]})"));
  EXPECT_FALSE(accepts(R"({"required": ["x"]})", "{}"));
  expect_refused(R"({"required": ["x"], "additionalProperties": false})",
                 ErrorCode::invalid_argument, "no value satisfies");
}

TEST(JsonSchema, IntegersStayWithinTheirBounds) {
  const std::string schema = R"({"type": "integer", "minimum": -12, "exclusiveMaximum": 205})";
  const Grammar grammar = compile_json_schema(Json::parse(schema));
  for (int i = -300; i <= 300; ++i) {
    EXPECT_EQ(accepts(grammar, std::to_string(i)), i >= -12 && i < 205) << i;
  }
  EXPECT_FALSE(accepts(grammar, "007"));
  EXPECT_FALSE(accepts(grammar, "1.0"));
  const Grammar high = compile_json_schema(Json::parse(R"({"type": "integer", "minimum": 98765})"));
  for (const int i : {0, 9, 98764, 10000, -98766}) EXPECT_FALSE(accepts(high, std::to_string(i)));
  for (const int i : {98765, 98766, 98770, 99000, 100000}) {
    EXPECT_TRUE(accepts(high, std::to_string(i))) << i;
  }
}

TEST(JsonSchema, NumbersStayWithinTheirBounds) {
  const Grammar chance =
      compile_json_schema(Json::parse(R"({"type": "number", "minimum": 0, "maximum": 1})"));
  for (const char* good : {"0", "1", "0.5", "0.000001", "1.0", "0.99"}) {
    EXPECT_TRUE(accepts(chance, good)) << good;
  }
  for (const char* bad : {"1.1", "-0.5", "2", "1.01", ".5", "1e1", "00"}) {
    EXPECT_FALSE(accepts(chance, bad)) << bad;
  }
  const Grammar open = compile_json_schema(
      Json::parse(R"({"type": "number", "exclusiveMinimum": -3, "exclusiveMaximum": 2})"));
  for (const char* good : {"-2.999", "-2", "0", "-0.5", "1.99", "1"}) {
    EXPECT_TRUE(accepts(open, good)) << good;
  }
  for (const char* bad : {"-3", "-3.0", "-3.1", "2", "2.0", "2.1"}) {
    EXPECT_FALSE(accepts(open, bad)) << bad;
  }
}

TEST(JsonSchema, StringsCountCharactersNotBytes) {
  constexpr auto kSchema = R"({"type": "string", "minLength": 2, "maxLength": 3})";
  for (const char* good : {R"("ab")", R"("äöü")", R"("🙂🙂")", R"("\n\u00e4")"}) {
    EXPECT_TRUE(accepts(kSchema, good)) << good;
  }
  for (const char* bad : {R"("a")", R"("abcd")", R"("🙂")", "\"a\nb\"", R"("\ud83d\ude42")",
                          "\"\xC3\"", R"("\x41")"}) {
    EXPECT_FALSE(accepts(kSchema, bad)) << bad;
  }
}

TEST(JsonSchema, WhiteSpaceAndNumbersAreBounded) {
  EXPECT_TRUE(accepts(R"({"type": "array"})", "[\n    1 ]"));
  EXPECT_FALSE(accepts(R"({"type": "array"})", "[  1]"));
  EXPECT_FALSE(accepts(R"({"type": "array"})", "[\n\n1]"));
  EXPECT_TRUE(accepts(R"({"type": "array"})", "[1, 2 ]"));
  EXPECT_FALSE(accepts(R"({"type": "array"})", "[1 , 2]"));
  EXPECT_FALSE(accepts(R"({"type": "array"})", "[\n" + std::string(40, ' ') + "1]"));
  EXPECT_TRUE(accepts(R"({"type": "integer"})", std::string(18, '7')));
  EXPECT_FALSE(accepts(R"({"type": "integer"})", std::string(19, '7')));
  EXPECT_TRUE(accepts(R"({"type": "number"})", "-12.5e-3"));
  EXPECT_FALSE(accepts(R"({"type": "number"})", "1e100"));
  EXPECT_FALSE(accepts(R"({"type": "number"})", "1."));
}

TEST(JsonSchema, ChoicesAreWrittenAsTheyStand) {
  constexpr auto kSchema =
      R"({"enum": [1, 12, "a", {"b": [null]}], "type": ["integer", "object"]})";
  for (const char* good : {"1", "12", R"({"b":[null]})"})
    EXPECT_TRUE(accepts(kSchema, good)) << good;
  for (const char* bad : {"2", "\"a\"", "121"}) EXPECT_FALSE(accepts(kSchema, bad)) << bad;
}

TEST(JsonSchema, FormatsAreAlwaysRight) {
  struct Case {
    const char* format;
    std::vector<std::string> good;
    std::vector<std::string> bad;
  };
  const std::vector<Case> cases = {
      {"date",
       {"2024-02-28", "1999-12-31", "2023-04-30"},
       {"2024-02-30", "2023-04-31", "2023-00-10", "2023-13-01", "2023-1-1", "23-01-01",
        "0000-01-01"}},
      {"time",
       {"00:00:00Z", "23:59:59.125+05:30", "12:00:00-00:00"},
       {"24:00:00Z", "12:60:00Z", "12:00:00", "12:00Z", "12:00:00.Z"}},
      {"date-time",
       {"2024-02-28T23:59:59Z", "2024-01-31T00:00:00.5-11:00"},
       {"2024-02-28", "2024-02-28 23:59:59Z"}},
      {"uuid",
       {"01234567-89ab-cdef-0123-456789abcdef"},
       {"0123456789abcdef0123456789abcdef", "01234567-89ab-cdef-0123-456789abcdeg"}},
      {"ipv4",
       {"0.0.0.0", "255.255.255.255", "10.1.20.199"},
       {"256.1.1.1", "1.1.1", "01.1.1.1", "1.1.1.1.1"}},
      {"email",
       {"a@b.cd", "first.last+tag@mail-1.example.org"},
       {"a@b", "@b.cd", "a@-b.cd", ".a@b.cd", "a..b@c.de", "a b@c.de", "a@b.c-"}}};
  for (const Case& one : cases) {
    const Grammar grammar = compile_json_schema({{"type", "string"}, {"format", one.format}});
    for (const std::string& text : one.good) {
      EXPECT_TRUE(accepts(grammar, '"' + text + '"')) << text;
    }
    for (const std::string& text : one.bad) {
      EXPECT_FALSE(accepts(grammar, '"' + text + '"')) << text;
    }
    EXPECT_FALSE(accepts(grammar, "\"\""));
  }
  expect_refused(R"({"format": "hostname"})", ErrorCode::unsupported, "the format \"hostname\"");
  expect_refused(R"({"format": "date", "maxLength": 3})", ErrorCode::unsupported,
                 "a length beside");
}

TEST(JsonSchema, FirstItemsMayHaveSchemasOfTheirOwn) {
  const auto schema = [](const char* rest) {
    return fmt::format(
        R"({{"type": "array", "prefixItems": [{{"type": "integer"}}, {{"type": "null"}}]{}}})",
        rest);
  };
  const std::string pair = schema(R"(, "minItems": 2, "maxItems": 2)");
  EXPECT_TRUE(accepts(pair, "[1, null]"));
  for (const char* bad : {"[1]", "[null, 1]", "[1, null, 2]"})
    EXPECT_FALSE(accepts(pair, bad)) << bad;
  const std::string closed = schema(R"(, "items": false)");
  for (const char* good : {"[]", "[1]", "[1, null]"}) EXPECT_TRUE(accepts(closed, good)) << good;
  EXPECT_FALSE(accepts(closed, "[1, null, 1]"));
  const std::string open = schema(R"(, "items": {"type": "boolean"})");
  for (const char* good : {"[1, null, true]", "[1, null, true, false]"}) {
    EXPECT_TRUE(accepts(open, good)) << good;
  }
  EXPECT_FALSE(accepts(open, "[1, null, 3]"));
  EXPECT_TRUE(accepts(schema(""), R"([1, null, "any", {}])"));
}

// ---- patterns ---------------------------------------------------------------------------------

std::string with_pattern(std::string_view pattern, const Json& more = Json::object()) {
  Json schema = {{"type", "string"}, {"pattern", pattern}};
  schema.update(more);
  return schema.dump();
}

TEST(JsonSchema, PatternsSayWhatAStringMayBe) {
  struct Case {
    const char* pattern;
    std::vector<const char*> good;  // texts as JSON writes them
    std::vector<const char*> bad;
  };
  const std::vector<Case> cases = {
      {"^[A-Z]{2}-\\d{3,4}$", {"AB-123", "XY-0000"}, {"AB-12", "AB-12345", "ab-123", "xAB-123"}},
      {"foo", {"foo", "a foo!", "foofoo", "größe foo"}, {"", "fo", "f oo"}},
      {"^foo", {"foo", "foobar"}, {"a foo"}},
      {"foo$", {"foo", "a foo"}, {"foo a"}},
      {"^a$|^b+$|c", {"a", "b", "bbb", "xcx"}, {"", "ab", "aa"}},
      {"(^x|y)z$", {"xz", "yz", "ayz", "xyz"}, {"axz", "yza"}},
      {"^$", {""}, {"a"}},
      {"^(?:(?<year>\\d{4})|never)$", {"2024", "never"}, {"202", "2024never"}},
      {"^(a|b)*?c+?d??$", {"c", "abcd", "bcc"}, {"abd", ""}},
      {"^[^a-c\\s-]+$", {"xyz", "größe🙂", "\\\""}, {"a", "x y", "x-y", "x\\ty", ""}},
      {"^\\s+$", {" \\t\\n", "\xC2\xA0\xE2\x80\xA8\xEF\xBB\xBF"}, {"", "a", "\xE2\x80\x8B"}},
      {"^.$", {"a", "ä", "名", "🙂", "\\\\", "\\\"", "\\t"}, {"", "ab", "\\n", "\xE2\x80\xA8"}},
      {"^[à-ž名-命🙂]{2}$", {"éž", "名🙂", "吐命"}, {"e", "éa", "名", "名🙃"}},
      {"^\\u00e9\\x41\\u{1F642}\\ud83d\\ude42\\cJ\\/$", {"éA🙂🙂\\n/"}, {"eA🙂🙂\\n/"}},
      {"^\\w+\\W\\D\\S$", {"a_9-xy"}, {"a_9-0y", "a_9-x ", "é-xy"}},
      {"^[\\w.+-]+@[\\w-]+(\\.[\\w-]+)+$", {"a.b+c@d-e.org"}, {"a@b", "@b.c", "a b@c.d"}},
      {"^#(?:[0-9a-fA-F]{3}){1,2}$", {"#fff", "#A0b1C2"}, {"#ffff", "fff", "#ggg"}},
      {"^[\\]a-]?{x}{1,}]$", {"{x}]", "{x}}}]"}, {"]"}},
      {"^[^]{2}$", {"\\n\\r", "ab"}, {"a"}},
      {"^(a?){3}(){5}b$", {"b", "aaab"}, {"aaaab"}},
      {"", {"", "anything", "\\u00e9"}, {}},
      {"a*", {"", "b"}, {}}};
  for (const Case& one : cases) {
    SCOPED_TRACE(one.pattern);
    const Grammar grammar = compile_json_schema(Json::parse(with_pattern(one.pattern)));
    for (const std::string text : one.good) EXPECT_TRUE(accepts(grammar, '"' + text + '"')) << text;
    for (const std::string text : one.bad) EXPECT_FALSE(accepts(grammar, '"' + text + '"')) << text;
    EXPECT_FALSE(accepts(grammar, "\""));
  }
}

TEST(JsonSchema, CharactersOfAPatternAreEscapedOnlyWhereTheyMustBe) {
  const Grammar grammar = compile_json_schema(Json::parse(with_pattern("^[^]$")));
  for (const char* good :
       {R"("\"")", R"("\\")", R"("\b")", R"("\f")", R"("\n")", R"("\r")", R"("\t")", R"("/")",
        "\"\x7F\"", "\"\xEF\xBF\xBF\"", "\"\xF4\x8F\xBF\xBF\""}) {
    EXPECT_TRUE(accepts(grammar, good)) << good;
  }
  for (const char* bad :
       {R"("\/")", R"("\u0041")", R"("\a")", "\"\n\"", "\"\x1F\"", "\"\xED\xA0\x80\"",
        "\"\xC0\x80\"", "\"\xF4\x90\x80\x80\"", "\"\xE2\x80\"", "\"\x80\""}) {
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  }
}

TEST(JsonSchema, APatternKeepsTheLengthBesideIt) {
  const std::string schema = with_pattern("^(ab)+c?$", {{"minLength", 3}, {"maxLength", 5}});
  for (const char* good : {R"("abc")", R"("abab")", R"("ababc")"}) {
    EXPECT_TRUE(accepts(schema, good)) << good;
  }
  for (const char* bad : {R"("ab")", R"("ababab")", R"("")"})
    EXPECT_FALSE(accepts(schema, bad)) << bad;
  EXPECT_TRUE(accepts(with_pattern("é", {{"minLength", 3}}), R"("aéb")"));
  EXPECT_FALSE(accepts(with_pattern("é", {{"minLength", 3}}), R"("é")"));
  EXPECT_TRUE(accepts(with_pattern("", {{"maxLength", 2}}), R"("é🙂")"));
  EXPECT_FALSE(accepts(with_pattern("", {{"maxLength", 2}}), R"("abc")"));
  expect_refused(with_pattern("^a{3}$", {{"maxLength", 2}}), ErrorCode::invalid_argument,
                 "no value satisfies");
  // A beginning that can no longer become long or short enough is refused at once.
  const auto masks = masks_of(with_pattern("^(ab|c+)$", {{"minLength", 3}}));
  const auto mask = masks->mask(masks->after(masks->start(), demo_tokenizer().find("\"")));
  EXPECT_FALSE(testing::is_allowed(*mask, demo_tokenizer().find("a")));
  EXPECT_TRUE(testing::is_allowed(*mask, demo_tokenizer().find("c")));
}

TEST(JsonSchema, ManyPatternsShareTheirTokensAndKeepApart) {
  Json schema = {
      {"type", "array"}, {"items", false}, {"minItems", 12}, {"prefixItems", Json::array()}};
  for (int i = 0; i < 12; ++i) {
    const char letter = static_cast<char>('a' + i);
    const std::string pattern = fmt::format("^{}[^{}]?{}$", letter, letter, letter);
    schema["prefixItems"].push_back({{"pattern", pattern}, {"type", "string"}});
  }
  const auto masks = masks_of(compile_json_schema(schema));
  std::mt19937 random(8);
  for (int walk = 0; walk < 5; ++walk) {
    GrammarConstraint constraint(masks);
    const Json value = Json::parse(testing::random_answer(
        constraint, demo_tokenizer(), kStop, 60, random, [](std::span<const uint32_t>) {}));
    ASSERT_EQ(value.size(), 12U);
    for (size_t i = 0; i < value.size(); ++i) {
      const auto text = value[i].get<std::string>();
      EXPECT_EQ(text.front(), static_cast<char>('a' + i)) << text;
      EXPECT_EQ(text.back(), static_cast<char>('a' + i)) << text;
    }
  }
}

TEST(JsonSchema, WhatHasNoPlaceInAPatternIsNamed) {
  for (const auto& [pattern, part] :
       {std::pair("^(?=a)", "look-around"), std::pair("a(?<!b)", "look-around"),
        std::pair("(a)\\1", "back reference"), std::pair("\\k<a>", "back reference"),
        std::pair("\\bword", "word boundary"), std::pair("\\p{L}", "\\p"),
        std::pair("(?i:a)", "(?"), std::pair("a{2,1001}", "1000 times"),
        std::pair("(a{1,100}){1,1000}", "steps"), std::pair("(x|y)*x(x|y){30}", "more than")}) {
    expect_refused(with_pattern(pattern), ErrorCode::unsupported, part);
  }
  for (const auto& [pattern, part] :
       {std::pair("(a", "lacks its )"), std::pair("a)", "without its ("),
        std::pair("[a", "ends too early"), std::pair("*a", "nothing to repeat"),
        std::pair("a**", "nothing to repeat"), std::pair("^{2}", "nothing to repeat"),
        std::pair("a{3,2}", "exceeds the most"), std::pair("[z-a]", "before it begins"),
        std::pair("[a-\\d]", "before it begins"), std::pair("\\y", "no escape"),
        std::pair("\\xg0", "hexadecimal"), std::pair("\\ud83d", "surrogate"),
        std::pair("\\u{110000}", "no character"), std::pair("\\", "ends too early")}) {
    expect_refused(with_pattern(pattern), ErrorCode::invalid_argument, part);
  }
  expect_refused(Json{{"properties", {{"a", {{"pattern", "a)"}}}}}}.dump(),
                 ErrorCode::invalid_argument, "at /properties/a: the pattern a), character 1: ");
  expect_refused(R"({"pattern": 3})", ErrorCode::invalid_argument, "\"pattern\" is 3");
  expect_refused(with_pattern("^[]$"), ErrorCode::invalid_argument, "no value satisfies");
  expect_refused(with_pattern("a^"), ErrorCode::invalid_argument, "no value satisfies");
  expect_refused(with_pattern("^\\u0001$"), ErrorCode::invalid_argument, "no value satisfies");
  expect_refused(with_pattern("a", {{"format", "date"}}), ErrorCode::unsupported, "beside");
  expect_refused(with_pattern(std::string(200, '(')), ErrorCode::unsupported, "nesting");
  expect_refused(with_pattern(std::string(3000, 'a')), ErrorCode::unsupported, "2000 characters");
  expect_refused(with_pattern("^a", {{"minLength", 50000}}), ErrorCode::unsupported, "its length");
}

// ---- refusals -----------------------------------------------------------------------------------

TEST(JsonSchema, AKeywordThatIsNotSupportedIsNamedWithItsPlace) {
  expect_refused(R"({"properties": {"a": {"type": "object", "minProperties": 1}}})",
                 ErrorCode::unsupported, "at /properties/a: the keyword \"minProperties\"");
  expect_refused(R"({"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "uniqueItems": true}}})",
                 ErrorCode::unsupported, "at /$defs/x: the keyword \"uniqueItems\"");
  for (const char* keyword :
       {"patternProperties", "not", "if", "multipleOf", "minProperties", "contains", "nullable"}) {
    expect_refused(Json{{keyword, 1}}.dump(), ErrorCode::unsupported, keyword);
  }
  expect_refused(R"({"anyOf": [{}], "properties": {}})", ErrorCode::unsupported, "beside");
  expect_refused(R"({"allOf": [{}, {}]})", ErrorCode::unsupported, "allOf");
  expect_refused(R"({"$ref": "other.json"})", ErrorCode::unsupported, "another document");
  expect_refused(R"({"type": "number", "minimum": 0.5})", ErrorCode::unsupported, "minimum");
  expect_refused(R"({"maxItems": 4000000})", ErrorCode::unsupported, "states");
}

TEST(JsonSchema, BranchesOfOneOfMustExcludeEachOther) {
  const std::string tagged =
      R"({"type": "object", "required": ["k"], "properties": {"k": {"const": "x"}}})";
  const std::string other =
      R"({"type": "object", "required": ["k"], "properties": {"k": {"enum": ["y", "z"]}}})";
  const std::string closed =
      R"({"type": "object", "properties": {"a": {}}, "additionalProperties": false})";
  const auto one_of = [](const std::string& a, const std::string& b) {
    return R"({"$defs": {"t": {"type": "integer"}}, "oneOf": [)" + a + ", " + b + "]}";
  };
  const std::string text = R"({"type": "string"})";
  const std::string number = R"({"type": ["number", "null"]})";
  for (const auto& [a, b] :
       {std::pair(text, number), std::pair(tagged, other), std::pair(closed, tagged),
        std::pair(text, tagged), std::pair(std::string(R"({"$ref": "#/$defs/t"})"), text),
        std::pair(std::string(R"({"enum": [1, 2]})"), std::string(R"({"enum": [3, "1"]})"))}) {
    EXPECT_NO_THROW(static_cast<void>(compile_json_schema(Json::parse(one_of(a, b)))));
    EXPECT_NO_THROW(static_cast<void>(compile_json_schema(Json::parse(one_of(b, a)))));
  }
  for (const auto& [a, b] :
       {std::pair(text, text), std::pair(tagged, tagged),
        std::pair(std::string(R"({"$ref": "#/$defs/t"})"), number),
        std::pair(std::string(R"({"const": 1})"), std::string(R"({"enum": [2, 1.0]})")),
        std::pair(tagged, std::string(R"({"type": "object"})")),
        std::pair(text, std::string("true")),
        std::pair(std::string(R"({"maxLength": 2})"), number)}) {
    expect_refused(one_of(a, b), ErrorCode::unsupported, "branches 0 and 1 may allow the same");
    expect_refused(one_of(b, a), ErrorCode::unsupported, "branches 0 and 1 may allow the same");
  }
  EXPECT_TRUE(accepts(one_of(text, number), "12"));
  EXPECT_FALSE(accepts(one_of(text, number), "true"));
}

TEST(JsonSchema, MalformedSchemasAreRefused) {
  for (const char* schema :
       {R"(3)", R"({"type": "text"})", R"({"type": []})", R"({"properties": []})",
        R"({"enum": {}})", R"({"enum": []})", R"({"required": "a"})", R"({"required": [1]})",
        R"({"anyOf": []})", R"({"minLength": -1})", R"({"minLength": 2, "maxLength": 1})",
        R"({"$ref": 1})", R"({"minItems": 2, "maxItems": 1})", R"({"$ref": "#/nothing"})",
        R"({"maxLength": 1e3})", R"({"minLength": 18446744073709551615})", R"({"items": 3})",
        R"({"type": "integer", "minimum": 2, "maximum": 1})",
        R"({"type": "number", "minimum": 2, "exclusiveMaximum": 2})"}) {
    expect_refused(schema, ErrorCode::invalid_argument, "schema");
  }
}

TEST(JsonSchema, ASchemaThatNothingSatisfiesIsRefused) {
  expect_refused("false", ErrorCode::invalid_argument, "no value satisfies");
  expect_refused(R"({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})",
                 ErrorCode::invalid_argument, "no value satisfies");
  expect_refused(R"({"anyOf": [{"$ref": "#"}, {"type": "null"}]})", ErrorCode::unsupported,
                 "refers to itself");
}

TEST(JsonSchema, RecursionEndsBeforeItIsTooDeepForTheMatcher) {
  // Every list must hold a list or null: a walk that always goes deeper has to turn back in time.
  const auto masks = masks_of(
      R"({"type": "array", "minItems": 1, "items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}})");
  GrammarPositions positions = masks->start();
  std::string text;
  const TokenId open = demo_tokenizer().find("[");
  while (!GrammarMatcher::is_complete(positions)) {
    const auto mask = masks->mask(positions);
    TokenId token = open;
    for (const char* next : {"[", "n", "u", "l", "]"}) {
      token = demo_tokenizer().find(next);
      if (testing::is_allowed(*mask, token)) break;
    }
    positions = masks->after(positions, token);
    ASSERT_FALSE(positions.empty()) << text;
    text += demo_tokenizer().token_bytes(token);
  }
  EXPECT_FALSE(Json::parse(text, nullptr, false).is_discarded()) << text;
  EXPECT_GT(text.size(), 60U);
}

TEST(JsonSchema, AmbiguityBeyondMeasureIsTheSchemasError) {
  Json schema = {{"$ref", "#/$defs/d0"}};
  for (int i = 0; i < 40; ++i) {
    const Json next = {{"$ref", fmt::format("#/$defs/d{}", i + 1)}};
    const Json in_list = {{"type", "array"}, {"items", next}};
    schema["$defs"][fmt::format("d{}", i)] = {{"anyOf", {in_list, in_list}}};
  }
  schema["$defs"]["d40"] = {{"type", "null"}};
  const auto walk = [&] {
    const auto masks = masks_of(compile_json_schema(schema));
    GrammarPositions positions = masks->start();
    for (int i = 0; i < 40; ++i) {
      static_cast<void>(masks->mask(positions));
      positions = masks->after(positions, demo_tokenizer().find("["));
    }
  };
  try {
    walk();
    FAIL() << "it was followed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
  }
}

// ---- tool calls
// -----------------------------------------------------------------------------------

const std::vector<ToolSchema> kTools = {
    {"weather", Json::parse(R"({"type": "object", "properties": {"city": {"type": "string"}},
                                "required": ["city"], "additionalProperties": false})")},
    {"now", Json()}};

TEST(ToolCalls, AForcedCallHasItsTagsAndFollowsTheParameters) {
  const auto masks = masks_of(compile_answer({.tools = kTools}, demo_tokenizer()));
  std::mt19937 random(5);
  const TokenId begin = demo_tokenizer().find("<tool_call>");
  EXPECT_EQ(testing::allowed_in(*masks->mask(masks->start())), std::vector<TokenId>{begin});
  for (int walk = 0; walk < 40; ++walk) {
    GrammarConstraint constraint(masks);
    const std::string text = testing::random_answer(constraint, demo_tokenizer(), kStop, 40, random,
                                                    [](std::span<const uint32_t>) {});
    ASSERT_THAT(text, ::testing::StartsWith("<tool_call>\n{"));
    ASSERT_THAT(text, ::testing::EndsWith("}\n</tool_call>"));
    const Json call = Json::parse(text.substr(11, text.size() - 23));
    ASSERT_TRUE(call["arguments"].is_object()) << text;
    if (call["name"] == "weather") {
      ASSERT_TRUE(call["arguments"]["city"].is_string()) << text;
    } else {
      ASSERT_EQ(call["name"], "now");
    }
  }
}

TEST(ToolCalls, SeveralMayFollowOneAnotherWhereThatIsWanted) {
  const std::string call = "\n{\"name\": \"now\", \"arguments\": {}}\n";
  for (const bool several : {false, true}) {
    const auto masks = masks_of(compile_answer(
        {.tools = kTools, .several_calls = several, .after_first_tag = true}, demo_tokenizer()));
    GrammarPositions positions = masks->start();
    for (const TokenId token : demo_tokenizer().encode(call + "</tool_call>")) {
      positions = masks->after(positions, token);
    }
    EXPECT_TRUE(GrammarMatcher::is_complete(positions));
    positions = masks->after(positions, demo_tokenizer().find("Ċ"));
    EXPECT_EQ(positions.empty(), !several);
  }
}

TEST(ToolCalls, AnAnnouncedCallIsConstrainedAndTheTextAroundItIsNot) {
  const auto masks =
      masks_of(compile_answer({.tools = kTools, .after_first_tag = true}, demo_tokenizer()));
  const TokenId begin = demo_tokenizer().find("<tool_call>");
  const auto call =
      demo_tokenizer().encode("\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
  for (const auto passages :
       {TriggeredConstraint::Passages::any_number, TriggeredConstraint::Passages::at_most_one}) {
    TriggeredConstraint constraint(masks, begin, passages);
    constraint.accept(demo_tokenizer().find("a"));
    EXPECT_TRUE(constraint.mask().empty());
    constraint.accept(begin);
    for (const TokenId token : call) {
      EXPECT_TRUE(testing::is_allowed(constraint.mask(), token));
      EXPECT_FALSE(testing::is_allowed(constraint.mask(), kStop));
      constraint.accept(token);
    }
    if (passages == TriggeredConstraint::Passages::any_number) {
      EXPECT_TRUE(constraint.mask().empty());
    } else {
      EXPECT_EQ(testing::allowed_in(constraint.mask()), std::vector<TokenId>{kStop});
    }
  }
}

TEST(AnswerGrammar, AValueOrACallMayBeAskedForAndABlankLineMayComeAfterReasoning) {
  const auto masks = masks_of(compile_answer({.value = AnswerForm::Value::schema,
                                              .schema = Json::parse(R"({"type": "integer"})"),
                                              .tools = kTools,
                                              .after_reasoning = true},
                                             demo_tokenizer()));
  const auto mask = masks->mask(masks->start());
  for (const char* good : {"<tool_call>", "1", "Ċ"}) {
    EXPECT_TRUE(testing::is_allowed(*mask, demo_tokenizer().find(good))) << good;
  }
  for (const char* bad : {"a", "{", "</tool_call>"}) {
    EXPECT_FALSE(testing::is_allowed(*mask, demo_tokenizer().find(bad))) << bad;
  }
  EXPECT_FALSE(testing::is_allowed(*mask, kStop));
}

}  // namespace
}  // namespace glimpse
