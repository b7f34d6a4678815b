// Answers of a given form, asked of the engine with the demo checkpoint.
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "demo_golden.h"
#include "glimpse/engine.h"
#include "text/random_schemas.h"

namespace glimpse {
namespace {

using testing::cpu_options;
using ::testing::HasSubstr;
using testing::Pending;

Request drawn(const std::string& text, uint64_t seed) {
  Request request = testing::question("", text);
  request.sampling.temperature = 1.2F;
  request.sampling.top_p = 1;
  request.sampling.top_k = 0;
  request.sampling.seed = seed;
  request.sampling.loop_guard = false;
  return request;
}

Request with_schema(Request request, const std::string& schema) {
  request.response_format = {.kind = ResponseFormat::Kind::json_schema, .json_schema = schema};
  return request;
}

constexpr auto kTools = R"([
  {"type": "function", "function": {"name": "find", "description": "finds", "strict": true,
    "parameters": {"type": "object", "properties": {"what": {"enum": ["rocket", "apple"]},
      "count": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["what", "count"],
      "additionalProperties": false}}},
  {"type": "function", "function": {"name": "stop", "parameters": {"type": "object",
    "properties": {}, "additionalProperties": false}}}])";

/// The demo checkpoint with another chat template, in a folder of its own.
class OtherTemplate {
 public:
  OtherTemplate(const std::string& name, const std::string& chat_template)
      : folder_(std::filesystem::path(::testing::TempDir()) / name) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    for (const auto& entry : std::filesystem::directory_iterator(testing::demo_model_dir())) {
      if (entry.path().filename() == "chat_template.jinja") continue;
      std::filesystem::create_symlink(entry.path(), folder_ / entry.path().filename());
    }
    std::ofstream(folder_ / "chat_template.jinja") << chat_template;
  }
  ~OtherTemplate() { std::filesystem::remove_all(folder_); }
  OtherTemplate(const OtherTemplate&) = delete;
  OtherTemplate& operator=(const OtherTemplate&) = delete;

  [[nodiscard]] EngineOptions options() const {
    EngineOptions options = cpu_options(4);
    options.model = folder_.string();
    return options;
  }

 private:
  std::filesystem::path folder_;
};

constexpr auto kThinkingTemplate =
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}";

TEST(Constraints, AnswersToRandomSchemasAreValidJsonOrCutByMaxTokens) {
  EngineOptions options = cpu_options(16);
  options.context = 512;
  Engine engine(options);
  testing::SchemaMaker maker(4);
  std::vector<Json> schemas;
  std::vector<Pending> pending;
  for (int i = 0; i < 24; ++i) {
    schemas.push_back(maker.document());
    Request request =
        with_schema(drawn("Describe a rocket.", static_cast<uint64_t>(i)), schemas.back().dump());
    request.sampling.max_tokens = 200;
    pending.emplace_back(engine, std::move(request));
  }
  int num_whole = 0;
  for (size_t i = 0; i < pending.size(); ++i) {
    const Answer answer = pending[i].get();
    SCOPED_TRACE(schemas[i].dump() + "\n" + answer.text);
    if (answer.finish_reason == FinishReason::length) continue;
    ASSERT_EQ(answer.finish_reason, FinishReason::stop);
    const Json value = Json::parse(answer.text, nullptr, false);
    ASSERT_FALSE(value.is_discarded());
    EXPECT_TRUE(testing::Validator(schemas[i]).accepts(value));
    ++num_whole;
  }
  EXPECT_GT(num_whole, 8);
}

TEST(Constraints, JsonObjectGivesAnObjectAboutAPicture) {
  Engine engine(cpu_options(1));
  Request request = testing::question("05.png", "Describe this image.");
  request.response_format.kind = ResponseFormat::Kind::json_object;
  request.sampling.max_tokens = 200;
  const Answer answer = Pending(engine, std::move(request)).get();
  if (answer.finish_reason == FinishReason::stop) {
    EXPECT_TRUE(Json::parse(answer.text, nullptr, false).is_object()) << answer.text;
  }
  EXPECT_THAT(answer.text, ::testing::StartsWith("{"));
}

TEST(Constraints, MaxTokensCutsJsonAndSaysSo) {
  Engine engine(cpu_options(1));
  Request request =
      with_schema(drawn("Say something.", 1), R"({"type": "string", "minLength": 99})");
  request.sampling.max_tokens = 5;
  const Answer answer = Pending(engine, std::move(request)).get();
  EXPECT_EQ(answer.finish_reason, FinishReason::length);
  EXPECT_EQ(answer.usage.completion_tokens, 5);
}

TEST(Constraints, AForcedToolCallIsOne) {
  Engine engine(cpu_options(8));
  for (const ToolChoice choice : {ToolChoice::required, ToolChoice::named}) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      Request request = drawn("Find something.", seed);
      request.tools_json = kTools;
      request.tool_choice = choice;
      request.tool_name = choice == ToolChoice::named ? "find" : "";
      request.parallel_tool_calls = false;
      request.sampling.max_tokens = 150;
      const Answer answer = Pending(engine, std::move(request)).get();
      ASSERT_EQ(answer.finish_reason, FinishReason::tool_calls) << answer.text;
      ASSERT_EQ(answer.tool_calls.size(), 1U);
      EXPECT_EQ(answer.text, "");
      const Json arguments = Json::parse(answer.tool_calls[0].arguments_json);
      if (choice == ToolChoice::named || answer.tool_calls[0].name == "find") {
        ASSERT_EQ(answer.tool_calls[0].name, "find");
        EXPECT_GE(arguments["count"].get<int>(), 1);
        EXPECT_LE(arguments["count"].get<int>(), 9);
      } else {
        EXPECT_EQ(arguments, Json::object());
      }
    }
  }
}

TEST(Constraints, BeginAfterTheThoughtWhichMayNotEndTheAnswer) {
  const OtherTemplate thinking("glimpse_constraint_test_thinking", kThinkingTemplate);
  Engine engine(thinking.options());
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Request request = with_schema(drawn("Count to three.", seed),
                                  R"({"type": "object", "properties": {"n": {"type": "integer"}},
                        "required": ["n"], "additionalProperties": false})");
    request.sampling.thinking_budget = 12;
    request.sampling.max_tokens = 80;
    const Answer answer = Pending(engine, std::move(request)).get();
    ASSERT_EQ(answer.finish_reason, FinishReason::stop) << answer.text;
    EXPECT_GT(answer.usage.reasoning_tokens, 0);
    EXPECT_LE(answer.usage.reasoning_tokens, 12);
    EXPECT_FALSE(answer.reasoning.empty());
    EXPECT_THAT(answer.reasoning, ::testing::Not(HasSubstr("think>")));
    EXPECT_TRUE(Json::parse(answer.text)["n"].is_number_integer()) << answer.text;
  }
}

TEST(Constraints, WhatCannotBeFollowedIsTheRequestsOwnError) {
  Engine engine(cpu_options(1));
  const auto expect_error = [&](Request request, ErrorCode code, const char* part) {
    request.sampling.max_tokens = 20;
    try {
      static_cast<void>(Pending(engine, std::move(request)).get());
      ADD_FAILURE() << "it was answered; expected: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  };
  const Request plain = drawn("Hello.", 1);
  expect_error(with_schema(plain, R"x({"type": "string", "pattern": "a(?=b)"})x"),
               ErrorCode::unsupported, "look-around");
  expect_error(with_schema(plain, "{"), ErrorCode::invalid_argument, "not valid JSON");
  expect_error(with_schema(plain, "false"), ErrorCode::invalid_argument, "no value");
  Request forced = plain;
  forced.tool_choice = ToolChoice::required;
  expect_error(forced, ErrorCode::invalid_argument, "no tool");
  forced.tools_json = kTools;
  forced.tool_choice = ToolChoice::named;
  forced.tool_name = "nothing";
  expect_error(forced, ErrorCode::invalid_argument, "no tool nothing");
  forced.tool_name = "find";
  expect_error(with_schema(forced, "true"), ErrorCode::invalid_argument, "at once");
  Request endless = with_schema(plain, "true");
  endless.sampling.ignore_eos = true;
  expect_error(endless, ErrorCode::invalid_argument, "ignore_eos");
  Request odd = plain;
  odd.tools_json = R"([{"type": "function", "function": {"name": "f", "strict": true,
      "parameters": {"type": "object", "patternProperties": {}}}}])";
  expect_error(odd, ErrorCode::unsupported, "tool f: the keyword \"patternProperties\"");
  // And the engine goes on.
  EXPECT_EQ(engine.status().healthy, true);
  EXPECT_FALSE(Pending(engine, plain).get().tokens.empty());
}

}  // namespace
}  // namespace glimpse
