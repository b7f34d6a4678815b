// Stop strings, reasoning, tool calls, loops: what becomes of the tokens of an answer. A tokenizer
// whose tokens are single bytes and a few tags spells the answers out.
#include <gtest/gtest.h>

#include "base/json.h"
#include "runtime/answer_writer.h"
#include "runtime/random.h"

namespace glimpse {
namespace {

// Byte-level vocabulary: "a" is its own token; <think>, </think> and <|end|> are added tokens.
Tokenizer byte_tokenizer() {
  Json vocabulary = Json::object();
  int next = 0;
  for (char c = '!'; c <= '~'; ++c) vocabulary[std::string(1, c)] = next++;
  vocabulary["\u0120"] = next++;  // space
  vocabulary["\u010A"] = next++;  // newline
  vocabulary["\u00C3"] = next++;  // the first byte of an e with acute accent
  vocabulary["\u00A9"] = next++;  // the second
  Json added = Json::array();
  for (const char* tag : {"<think>", "</think>", "<|end|>"}) {
    added.push_back({{"id", next++},
                     {"content", tag},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", std::string(tag) == "<|end|>"}});
  }
  const Json split = {{"type", "Split"},
                      {"pattern", {{"Regex", "[^\\s]+|\\s+"}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const Json bytes = {{"type", "ByteLevel"},
                      {"add_prefix_space", false},
                      {"trim_offsets", false},
                      {"use_regex", false}};
  const Json document = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", {{"type", "NFC"}}},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({split, bytes})}}},
      {"post_processor", nullptr},
      {"decoder", bytes},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", ""},
        {"end_of_word_suffix", ""},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocabulary},
        {"merges", Json::array()}}}};
  return Tokenizer::from_json(document.dump());
}

struct Written {
  std::string text;
  std::string reasoning;
  std::vector<TokenId> tokens;
  std::vector<std::string> pieces;
  std::vector<ToolCall> calls;
  FinishReason reason = FinishReason::length;
  TokenId forced = -1;
};

class AnswerWriterTest : public ::testing::Test {
 protected:
  AnswerRules rules() {
    AnswerRules result;
    result.tokenizer = &tokenizer_;
    result.eos_ids = {tokenizer_.find("<|end|>")};
    result.max_tokens = 1000;
    result.think_begin = tokenizer_.find("<think>");
    result.think_end = tokenizer_.find("</think>");
    return result;
  }

  Written write(const AnswerRules& rules, const std::string& text) {
    AnswerWriter writer(rules);
    Written written;
    std::vector<Event> events;
    std::optional<FinishReason> reason;
    for (const TokenId token : tokenizer_.encode(text)) {
      if (reason) break;
      if (writer.forced_token() >= 0) written.forced = writer.forced_token();
      reason = writer.push(token, std::nullopt, events);
    }
    written.reason = reason.value_or(FinishReason::length);
    writer.finish(written.reason, events, written.calls);
    for (const Event& event : events) {
      (event.is_reasoning ? written.reasoning : written.text) += event.text;
      if (!event.text.empty()) written.pieces.push_back(event.text);
      written.tokens.insert(written.tokens.end(), event.tokens.begin(), event.tokens.end());
    }
    return written;
  }

  TokenId token(const std::string& text) { return tokenizer_.encode(text).front(); }

  Tokenizer tokenizer_ = byte_tokenizer();
};

TEST_F(AnswerWriterTest, EveryTokenAppearsOnceInOrder) {
  const Written written = write(rules(), "a b c<|end|>");
  EXPECT_EQ(written.text, "a b c");
  EXPECT_EQ(written.tokens, tokenizer_.encode("a b c<|end|>"));
  EXPECT_EQ(written.reason, FinishReason::stop);
}

TEST_F(AnswerWriterTest, CharactersAreNeverCut) {
  const Written written = write(rules(), "\u00E9x<|end|>");
  ASSERT_EQ(written.pieces.size(), 2U);
  EXPECT_EQ(written.pieces[0], "\u00E9");
}

TEST_F(AnswerWriterTest, AStopStringEndsTheAnswerBeforeItself) {
  AnswerRules with_stop = rules();
  with_stop.stop = {"END"};
  const Written written = write(with_stop, "abcENDxyz");
  EXPECT_EQ(written.text, "abc");
  EXPECT_EQ(written.reason, FinishReason::stop);
  EXPECT_EQ(written.tokens.size(), 6U);
}

TEST_F(AnswerWriterTest, TheBeginningOfAStopStringIsHeldBackAndThenReleased) {
  AnswerRules with_stop = rules();
  with_stop.stop = {"ENDE"};
  const Written written = write(with_stop, "aENDx<|end|>");
  EXPECT_EQ(written.text, "aENDx");
  EXPECT_EQ(written.pieces, (std::vector<std::string>{"a", "ENDx"}));
}

TEST_F(AnswerWriterTest, OfSeveralStopStringsTheFirstInTheTextWins) {
  AnswerRules with_stop = rules();
  with_stop.stop = {"yy", "x"};
  EXPECT_EQ(write(with_stop, "abxyy").text, "ab");
}

TEST_F(AnswerWriterTest, TheTokenLimitEndsTheAnswer) {
  AnswerRules limited = rules();
  limited.max_tokens = 3;
  const Written written = write(limited, "abcdef");
  EXPECT_EQ(written.text, "abc");
  EXPECT_EQ(written.reason, FinishReason::length);
}

TEST_F(AnswerWriterTest, ReasoningIsToldApartAndItsNewlinesAreTrimmed) {
  AnswerRules thinking = rules();
  thinking.starts_in_reasoning = true;
  const Written written = write(thinking, "\nwhy\nnot\n</think>\n\nyes<|end|>");
  EXPECT_EQ(written.reasoning, "why\nnot");
  EXPECT_EQ(written.text, "yes");
}

TEST_F(AnswerWriterTest, AModelMayOpenItsReasoningItself) {
  const Written written = write(rules(), "<think>hm</think>yes<|end|>");
  EXPECT_EQ(written.reasoning, "hm");
  EXPECT_EQ(written.text, "yes");
}

TEST_F(AnswerWriterTest, TheThinkingBudgetForcesTheEndOfThinking) {
  AnswerRules thinking = rules();
  thinking.starts_in_reasoning = true;
  thinking.thinking_budget = 3;
  EXPECT_EQ(write(thinking, "abc</think>x<|end|>").forced, tokenizer_.find("</think>"));
  EXPECT_EQ(write(thinking, "ab</think>x<|end|>").forced, -1);
}

TEST_F(AnswerWriterTest, WhatComesAfterTheNextTokenIsOpenBeforeTheBudgetAndTheEnd) {
  std::vector<Event> events;
  AnswerRules limited = rules();
  limited.max_tokens = 3;
  AnswerWriter short_answer(limited);
  EXPECT_TRUE(short_answer.goes_on_freely());
  EXPECT_FALSE(short_answer.push(token("a"), {}, events));
  EXPECT_TRUE(short_answer.goes_on_freely());
  EXPECT_FALSE(short_answer.push(token("b"), {}, events));
  EXPECT_FALSE(short_answer.goes_on_freely()) << "the third token ends it";

  AnswerRules thinking = rules();
  thinking.starts_in_reasoning = true;
  thinking.thinking_budget = 2;
  AnswerWriter thought(thinking);
  EXPECT_TRUE(thought.goes_on_freely());
  EXPECT_FALSE(thought.push(token("a"), {}, events));
  EXPECT_FALSE(thought.goes_on_freely()) << "after the second token </think> must come";
  EXPECT_FALSE(thought.push(token("</think>"), {}, events));
  EXPECT_TRUE(thought.goes_on_freely());
}

TEST_F(AnswerWriterTest, AToolCallIsNoText) {
  AnswerRules tools = rules();
  tools.has_tools = true;
  const Written written = write(
      tools, "Wait\n<tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call><|end|>");
  EXPECT_EQ(written.text, "Wait");
  EXPECT_EQ(written.reason, FinishReason::tool_calls);
  ASSERT_EQ(written.calls.size(), 1U);
  EXPECT_EQ(written.calls[0].name, "f");
  EXPECT_EQ(written.calls[0].arguments_json, "{\"x\":1}");
}

TEST_F(AnswerWriterTest, SeveralToolCallsAreAllFound) {
  AnswerRules tools = rules();
  tools.has_tools = true;
  const Written written = write(tools,
                                "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n"
                                "<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call><|end|>");
  ASSERT_EQ(written.calls.size(), 2U);
  EXPECT_EQ(written.calls[1].name, "g");
}

TEST_F(AnswerWriterTest, ABrokenToolCallIsGivenOutAsText) {
  AnswerRules tools = rules();
  tools.has_tools = true;
  const Written written = write(tools, "<tool_call>{\"name\":</tool_call><|end|>");
  EXPECT_TRUE(written.calls.empty());
  EXPECT_EQ(written.reason, FinishReason::stop);
  EXPECT_EQ(written.text, "<tool_call>{\"name\":</tool_call>");
}

TEST_F(AnswerWriterTest, ATagWithinAStringDoesNotEndACall) {
  const auto calls = parse_tool_calls(
      "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"</tool_call>\"}}</tool_call>\n"
      "<tool_call>{\"name\":\"g\"}</tool_call>");
  ASSERT_EQ(calls.size(), 2U);
  EXPECT_EQ(calls[0].arguments_json, "{\"a\":\"</tool_call>\"}");
  EXPECT_EQ(calls[1].arguments_json, "{}");
}

TEST_F(AnswerWriterTest, TheEndOfThinkingIsFollowedByTheCall) {
  AnswerRules tools = rules();
  tools.has_tools = true;
  tools.starts_in_reasoning = true;
  const Written written =
      write(tools, "hm</think>\n\n<tool_call>{\"name\":\"f\"}</tool_call><|end|>");
  EXPECT_EQ(written.reasoning, "hm");
  EXPECT_EQ(written.text, "");
  EXPECT_EQ(written.calls.size(), 1U);
}

constexpr auto kCallsInForm =
    "Well\n<tool_call>\n{\"name\": \"f \\\"1\\\"\", \"arguments\": {\"x\": [1, {\"y\": "
    "\"}]\\\"\"}]}}\n"
    "</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

TEST_F(AnswerWriterTest, CallsThatFollowTheGrammarComePieceByPiece) {
  AnswerRules tools = rules();
  tools.has_tools = true;
  tools.calls_follow_grammar = true;
  AnswerWriter writer(tools);
  std::vector<Event> events;
  for (const TokenId token : tokenizer_.encode(kCallsInForm)) {
    ASSERT_FALSE(writer.push(token, std::nullopt, events));
  }
  std::vector<std::string> names(2);
  std::vector<std::string> arguments(2);
  size_t num_pieces = 0;
  const size_t num_before_end = events.size();
  FinishReason reason = FinishReason::stop;
  std::vector<ToolCall> calls;
  writer.finish(reason, events, calls);
  for (const Event& event : events) {
    for (const ToolCallPiece& piece : event.tool_call_pieces) {
      names[static_cast<size_t>(piece.index)] += piece.name;
      arguments[static_cast<size_t>(piece.index)] += piece.arguments;
      ++num_pieces;
    }
  }
  EXPECT_EQ(reason, FinishReason::tool_calls);
  EXPECT_EQ(names, (std::vector<std::string>{"f \"1\"", "g"}));
  EXPECT_EQ(arguments, (std::vector<std::string>{"{\"x\": [1, {\"y\": \"}]\\\"\"}]}", "{}"}));
  EXPECT_GT(num_pieces, 4U);
  EXPECT_GT(num_before_end, 4U);
  ASSERT_EQ(calls.size(), 2U);
  EXPECT_EQ(calls[0].name, names[0]);
  EXPECT_EQ(calls[0].arguments_json, arguments[0]);
}

TEST_F(AnswerWriterTest, ACallThatIsCutKeepsWhatItHasOfItsArguments) {
  AnswerRules tools = rules();
  tools.has_tools = true;
  tools.calls_follow_grammar = true;
  const Written written =
      write(tools, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"lon");
  ASSERT_EQ(written.calls.size(), 1U);
  EXPECT_EQ(written.calls[0].arguments_json, "{\"x\": \"lon");
  EXPECT_EQ(written.reason, FinishReason::length);
  EXPECT_EQ(written.text, "");
}

TEST_F(AnswerWriterTest, ARepeatingTailEndsTheAnswer) {
  std::string text = "well,";
  for (int i = 0; i < 100; ++i) text += "again_and_";
  const Written written = write(rules(), text);
  EXPECT_EQ(written.reason, FinishReason::loop);
  EXPECT_LT(written.tokens.size(), 120U);
  AnswerRules unguarded = rules();
  unguarded.loop_guard = false;
  EXPECT_EQ(write(unguarded, text).reason, FinishReason::length);
}

TEST(LoopGuard, CountingIsNoLoop) {
  LoopGuard guard;
  for (TokenId i = 0; i < 2000; ++i) {
    // Rows of a table: a fixed frame around a number that changes.
    for (const TokenId token : {1, 2, 3, 1000 + i % 1000, 4}) ASSERT_FALSE(guard.push(token));
  }
}

TEST(LoopGuard, FindsLongPeriods) {
  LoopGuard guard;
  int pushed = 0;
  bool found = false;
  for (; !found && pushed < 5000; ++pushed) found = guard.push(pushed % 200);
  EXPECT_EQ(pushed, 800);
}

TEST(UniformDraw, IsInRangeReproducibleAndEven) {
  double sum = 0;
  constexpr int kDraws = 20000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const float draw = uniform_draw(42, i);
    ASSERT_GE(draw, 0.0F);
    ASSERT_LT(draw, 1.0F);
    ASSERT_EQ(draw, uniform_draw(42, i));
    sum += draw;
  }
  // The mean of n draws has a standard deviation of 0.29 / sqrt(n): 0.002; five of them.
  EXPECT_NEAR(sum / kDraws, 0.5, 0.01);
  EXPECT_NE(uniform_draw(42, 0), uniform_draw(43, 0));
}

}  // namespace
}  // namespace glimpse
