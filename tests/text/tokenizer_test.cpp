#include "text/tokenizer.h"

#include <fstream>
#include <functional>
#include <random>
#include <sstream>

#include <gmock/gmock.h>

#include "glimpse/error.h"
#include "test_tokenizers.h"
#include "text/stream_decoder.h"

namespace glimpse {
namespace {

using testing::demo_tokenizer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::qwen_tokenizer_path;
using testing::small_tokenizer_json;

using Ids = std::vector<TokenId>;

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

Tokenizer small_tokenizer() {
  return Tokenizer::from_json(small_tokenizer_json().dump());
}

/// What from_json says to a document changed by `change`.
Error refusal(const std::function<void(Json&)>& change) {
  Json json = small_tokenizer_json();
  change(json);
  try {
    (void)Tokenizer::from_json(json.dump());
  } catch (const Error& error) {
    return error;
  }
  return {ErrorCode::internal, "accepted"};
}

TEST(QwenTokenizer, EncodesAndDecodesTheVectorsAsTransformersDoes) {
  const Tokenizer tokenizer(qwen_tokenizer_path());
  EXPECT_EQ(tokenizer.vocabulary_size(), 151669);
  const Json vectors = read_json_file(testing::golden_dir() / "tokenizer" / "vectors.json");
  ASSERT_EQ(vectors.size(), 39U);
  for (const Json& vector : vectors) {
    const auto text = vector["text"].get<std::string>();
    const auto ids = vector["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids, false), vector["decoded"].get<std::string>()) << text;
  }
}

TEST(QwenTokenizer, EncodesTheSharedBpeCases) {
  const auto folder = testing::golden_dir() / "tokenizer";
  const Tokenizer tokenizer(qwen_tokenizer_path());
  const std::string texts = read_text(folder / "bpe-cases.inp");
  std::istringstream expected(read_text(folder / "bpe-cases.out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  int cases = 0;
  for (size_t begin = 0; begin < texts.size(); ++cases) {
    const size_t end = std::min(texts.find(separator, begin), texts.size());
    const std::string text = texts.substr(begin, end - begin);
    begin = end + separator.size();
    std::string line;
    ASSERT_TRUE(std::getline(expected, line)) << "case " << cases;
    std::istringstream numbers(line);
    const Ids ids{std::istream_iterator<TokenId>(numbers), {}};
    EXPECT_EQ(tokenizer.encode(text), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids, false), text);
  }
  EXPECT_EQ(cases, 46);
}

// A quadratic algorithm takes hours: the test's time limit ends it.
TEST(QwenTokenizer, EncodesAMegabyteOfOneLetterOrOfWhiteSpace) {
  const Tokenizer tokenizer(qwen_tokenizer_path());
  for (const std::string unit : {"a", " ", "\n", " \n", "\u0301\u0316", "\xFF", "<|", "日"}) {
    std::string text;
    while (text.size() < (1U << 20U)) text += unit;
    EXPECT_FALSE(tokenizer.encode(text).empty()) << unit;
  }
}

TEST(DemoTokenizer, RoundTripsTheVectorsThatAreValidText) {
  const Json vectors = read_json_file(testing::golden_dir() / "tokenizer" / "vectors.json");
  for (const Json& vector : vectors) {
    const auto text = vector["decoded"].get<std::string>();  // in form C already
    EXPECT_EQ(demo_tokenizer().decode(demo_tokenizer().encode(text), false), text);
  }
}

TEST(DemoTokenizer, KnowsItsControlTokens) {
  const Tokenizer& tokenizer = demo_tokenizer();
  const TokenId end = tokenizer.find("<|im_end|>");
  const TokenId think = tokenizer.find("<think>");
  EXPECT_EQ(end, 4072);
  EXPECT_TRUE(tokenizer.is_special(end));
  EXPECT_TRUE(tokenizer.is_added(think));
  EXPECT_FALSE(tokenizer.is_special(think));
  EXPECT_EQ(tokenizer.token_bytes(end), "<|im_end|>");
  EXPECT_EQ(tokenizer.decode(Ids{end, think}, true), "<think>");
  EXPECT_EQ(tokenizer.find("no such token"), -1);
}

TEST(DemoTokenizer, IdsOutsideTheVocabularyDecodeToNothing) {
  const Ids ids{-1, demo_tokenizer().vocabulary_size(), INT32_MAX, INT32_MIN};
  EXPECT_EQ(demo_tokenizer().decode(ids, false), "");
  EXPECT_FALSE(demo_tokenizer().is_added(-1));
}

TEST(DemoTokenizer, StreamedTextIsWholeCharactersAndSumsUpToTheDecodedText) {
  const Tokenizer& tokenizer = demo_tokenizer();
  std::mt19937 random(20260101);
  std::uniform_int_distribution<TokenId> any(-2, tokenizer.vocabulary_size() + 1);
  std::uniform_int_distribution<TokenId> byte(0, 255);  // in this vocabulary: single bytes
  for (int round = 0; round < 500; ++round) {
    Ids ids(static_cast<size_t>(round % 37));
    for (TokenId& id : ids) id = random() % 2 == 0 ? any(random) : byte(random);
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const TokenId id : ids) {
      const std::string text = stream.push(id);
      EXPECT_NO_THROW((void)Json(text).dump()) << "not valid UTF-8";
      streamed += text;
    }
    streamed += stream.finish();
    EXPECT_EQ(streamed, tokenizer.decode(ids, true)) << "round " << round;
  }
}

TEST(DemoTokenizer, HoldsBackAnUnfinishedCharacterAndReplacesItAtTheEnd) {
  const Tokenizer& tokenizer = demo_tokenizer();
  const Ids ids = tokenizer.encode("\U0001F601");
  ASSERT_GT(ids.size(), 1U) << "the test needs a character of several tokens";
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(SmallTokenizer, MergesByRankAndLeftmostFirst) {
  const Tokenizer tokenizer = small_tokenizer();
  EXPECT_THAT(tokenizer.encode("aab"), ElementsAre(4));
  EXPECT_THAT(tokenizer.encode("aaab"), ElementsAre(2, 3));
  EXPECT_THAT(tokenizer.encode("ab ab"), ElementsAre(3, 5, 3));
}

TEST(SmallTokenizer, LongPiecesMergeAsShortOnesDo) {
  const Tokenizer tokenizer = small_tokenizer();
  std::mt19937 random(7);
  for (size_t length = 1; length < 120; ++length) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += random() % 3 == 0 ? 'b' : 'a';
    // By hand: a run of a's pairs up from the left; what a "b" then finds before it decides.
    Ids expected;
    for (size_t i = 0; i < length;) {
      size_t run = i;
      while (run < length && text[run] == 'a') ++run;
      const size_t count = run - i;
      const bool b_follows = run < length;
      for (size_t pair = 0; pair + 1 <= count / 2; ++pair) expected.push_back(2);
      if (count % 2 == 1) {
        expected.push_back(b_follows ? 3 : 0);
      } else if (b_follows && count > 0) {
        expected.back() = 4;
      } else if (b_follows) {
        expected.push_back(1);
      }
      i = run + 1;
    }
    EXPECT_EQ(tokenizer.encode(text), expected) << text;
  }
}

TEST(SmallTokenizer, TheLongestAddedTokenWins) {
  EXPECT_THAT(small_tokenizer().encode("<|end|><|end|><|end|>a"), ElementsAre(10, 9, 0));
}

TEST(SmallTokenizer, ComposesBeforeItSplits) {
  const Tokenizer tokenizer = small_tokenizer();
  // "é" of the byte-level alphabet is byte 0xE9, so the composed letter's bytes C3 A9 have no
  // token.
  EXPECT_EQ(tokenizer.encode("e\u0301"), tokenizer.encode("\u00E9"));
}

TEST(SmallTokenizer, UserTextCannotHoldAddedTokens) {
  const Tokenizer tokenizer = small_tokenizer();
  const auto encode = [&](std::vector<TextPiece> pieces) { return tokenizer.encode(pieces); };
  EXPECT_THAT(encode({{"<|end|>", true}}), ElementsAre(9));
  EXPECT_THAT(encode({{"<|end|>", false}}), ::testing::Not(::testing::Contains(9)));
  EXPECT_THAT(encode({{"<|en", true}, {"d|>", true}}), ElementsAre(9));
  EXPECT_THAT(encode({{"<|en", true}, {"d|>", false}}), ::testing::Not(::testing::Contains(9)));
  EXPECT_THAT(encode({{"<|en", false}, {"d|>", true}}), ::testing::Not(::testing::Contains(9)));
  // The longer token reaches into user text, the shorter one does not.
  EXPECT_EQ(encode({{"<|end|>", true}, {"<|end|>", false}}).front(), 9);
}

TEST(SmallTokenizer, OrdinaryTextMergesAcrossPieces) {
  const Tokenizer tokenizer = small_tokenizer();
  const std::vector<TextPiece> pieces{{"a", true}, {"a", false}, {"", true}, {"b", true}};
  EXPECT_THAT(tokenizer.encode(pieces), ElementsAre(4));
}

TEST(DemoTokenizer, PiecesWithoutControlTokensEncodeAsTheirConcatenation) {
  std::mt19937 random(11);
  const std::string alphabet[] = {"a",      "the", " ",    "\n",    "é", "e",
                                  "\u0301", "7",   "<|im", "_end|", "日"};
  for (int round = 0; round < 300; ++round) {
    std::vector<TextPiece> pieces;
    std::string whole;
    for (unsigned i = random() % 12; i > 0; --i) {
      pieces.push_back({alphabet[random() % std::size(alphabet)], random() % 2 == 0});
      whole += pieces.back().text;
    }
    EXPECT_EQ(demo_tokenizer().encode(pieces), demo_tokenizer().encode(whole)) << whole;
  }
}

TEST(DemoTokenizer, AnyBytesEncodeAndGiveTheReplacedText) {
  std::mt19937 random(13);
  for (int round = 0; round < 300; ++round) {
    std::string bytes(round % 41, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    const Ids ids = demo_tokenizer().encode(bytes);
    // Encoding what was decoded changes nothing more: the text is valid and in form C.
    EXPECT_EQ(demo_tokenizer().encode(demo_tokenizer().decode(ids, false)), ids);
  }
}

TEST(TokenizerFile, WhatIsNotSupportedIsNamed) {
  const auto expect = [](const std::function<void(Json&)>& change, const std::string& name) {
    const Error error = refusal(change);
    EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(name));
  };
  expect([](Json& j) { j["normalizer"]["type"] = "Lowercase"; }, "Lowercase");
  expect([](Json& j) { j["model"]["type"] = "Unigram"; }, "Unigram");
  expect([](Json& j) { j["model"]["byte_fallback"] = true; }, "byte_fallback");
  expect([](Json& j) { j["model"]["dropout"] = 0.1; }, "dropout");
  expect([](Json& j) { j["model"]["ignore_merges"] = true; }, "ignore_merges");
  expect([](Json& j) { j["decoder"]["type"] = "Metaspace"; }, "Metaspace");
  expect([](Json& j) { j["post_processor"]["type"] = "TemplateProcessing"; }, "TemplateProcessing");
  expect([](Json& j) { j.erase("pre_tokenizer"); }, "pre_tokenizer");
  expect([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["type"] = "Digits"; }, "Digits");
  expect([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
         "Removed");
  expect([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["invert"] = true; }, "invert");
  expect([](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; }, "use_regex");
  expect([](Json& j) { j["added_tokens"][0]["lstrip"] = true; }, "lstrip");
  expect([](Json& j) { j["model"]["vocab"]["€"] = 11; }, "€");
}

TEST(TokenizerFile, WhatContradictsItselfIsABadModel) {
  const auto expect = [](const std::function<void(Json&)>& change, const std::string& name) {
    const Error error = refusal(change);
    EXPECT_EQ(error.code(), ErrorCode::bad_model) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(name));
  };
  expect([](Json& j) { j["model"]["vocab"]["b"] = 0; }, "id 0");
  expect([](Json& j) { j["model"]["vocab"]["b"] = -1; }, "-1");
  expect([](Json& j) { j["model"]["vocab"]["b"] = 1 << 30; }, "1073741824");
  expect([](Json& j) { j["model"]["merges"].push_back("b b"); }, "b b");
  expect([](Json& j) { j["model"]["merges"].push_back("bb"); }, "no space");
  expect([](Json& j) { j["model"]["merges"].push_back(7); }, "merge");
  expect([](Json& j) { j["model"].erase("vocab"); }, "vocab");
  expect([](Json& j) { j["added_tokens"][0]["id"] = 3; }, "id 3");
  expect([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("; },
         "split pattern");
  EXPECT_THROW((void)Tokenizer::from_json(""), Error);
  EXPECT_THROW((void)Tokenizer::from_json("[]"), Error);
  EXPECT_THROW((void)Tokenizer::from_json(R"({"model": )"), Error);
}

TEST(TokenizerFile, AMissingFileIsNotFound) {
  try {
    const Tokenizer tokenizer(std::filesystem::path("no/such/tokenizer.json"));
    FAIL() << "no exception";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::not_found);
  }
}

}  // namespace
}  // namespace glimpse
