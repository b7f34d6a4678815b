// Steps that begin before the host has seen the tokens of the step before: every answer is what it
// is without. On the CPU, which has nothing to gain from it, but runs the same code.
#include <algorithm>
#include <future>
#include <memory>
#include <stdexcept>

#include <gtest/gtest.h>

#include "runtime/demo_golden.h"

namespace glimpse {
namespace {

using namespace glimpse::testing;

EngineOptions options_of(LaunchAhead launch_ahead, int max_sequences) {
  EngineOptions options = cpu_options(max_sequences);
  options.launch_ahead = launch_ahead;
  options.context = 512;
  return options;
}

class LaunchAheadTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    plain_ = std::make_unique<Engine>(options_of(LaunchAhead::never, 4));
    ahead_ = std::make_unique<Engine>(options_of(LaunchAhead::always, 4));
  }
  static void TearDownTestSuite() {
    plain_.reset();
    ahead_.reset();
  }

  static Request endless(const std::string& text, int max_tokens) {
    Request request = question("", text);
    request.sampling.ignore_eos = true;
    request.sampling.loop_guard = false;
    request.sampling.max_tokens = max_tokens;
    return request;
  }
  static Request drawn(uint64_t seed, int max_tokens) {
    Request request = endless("Hello", max_tokens);
    request.sampling.temperature = 2.0F;
    request.sampling.top_k = 0;
    request.sampling.seed = seed;
    return request;
  }

  /// For answers beside others: how many rows a step has decides the order of its sums, and which
  /// requests meet in a step is a matter of time. A token drawn where two are as good as equal
  /// would be one or the other; of these 300 tokens none is closer to another than 0.002.
  static Request likeliest(int max_tokens) {
    Request request = endless("Hello", max_tokens);
    request.sampling.temperature = 0;
    return request;
  }

  static void expect_same(const Request& request) {
    const Answer expected = plain_->answer(request);
    const Answer answer = ahead_->answer(request);
    EXPECT_EQ(answer.tokens, expected.tokens);
    EXPECT_EQ(answer.text, expected.text);
    EXPECT_EQ(answer.finish_reason, expected.finish_reason);
    EXPECT_EQ(answer.usage.completion_tokens, expected.usage.completion_tokens);
    ASSERT_EQ(answer.logprobs.size(), expected.logprobs.size());
    for (size_t i = 0; i < answer.logprobs.size(); ++i) {
      EXPECT_EQ(answer.logprobs[i].chosen.token, expected.logprobs[i].chosen.token);
      EXPECT_EQ(answer.logprobs[i].chosen.log_prob, expected.logprobs[i].chosen.log_prob);
      ASSERT_EQ(answer.logprobs[i].top.size(), expected.logprobs[i].top.size());
      for (size_t j = 0; j < answer.logprobs[i].top.size(); ++j) {
        EXPECT_EQ(answer.logprobs[i].top[j].token, expected.logprobs[i].top[j].token);
        EXPECT_EQ(answer.logprobs[i].top[j].log_prob, expected.logprobs[i].top[j].log_prob);
      }
    }
  }

  static std::unique_ptr<Engine> plain_;
  static std::unique_ptr<Engine> ahead_;
};

std::unique_ptr<Engine> LaunchAheadTest::plain_;
std::unique_ptr<Engine> LaunchAheadTest::ahead_;

TEST_F(LaunchAheadTest, AnswersThatEndByThemselvesAreTransformers) {
  std::vector<GoldenAnswer> goldens = golden_answers();
  std::erase_if(goldens, [](const GoldenAnswer& golden) { return golden.smallest_gap < 0.01; });
  goldens.resize(12);
  const std::vector<Answer> answers = ask_all(*ahead_, goldens);
  for (size_t i = 0; i < goldens.size(); ++i) {
    EXPECT_EQ(answers[i].tokens, goldens[i].ids) << goldens[i].prompt;
    EXPECT_EQ(answers[i].text, goldens[i].text);
  }
  EXPECT_EQ(ahead_->status().kv_pages_used, 0);
  EXPECT_EQ(ahead_->status().running, 0);
}

TEST_F(LaunchAheadTest, DrawsPenaltiesAndChancesAreThoseOfTheToken) {
  Request request = drawn(11, 70);
  request.sampling.presence_penalty = 1.5F;
  request.sampling.frequency_penalty = 0.5F;
  request.sampling.repetition_penalty = 1.3F;
  request.sampling.logprobs = 3;
  expect_same(request);
  request.sampling.logprobs = 0;
  expect_same(request);
}

TEST_F(LaunchAheadTest, StopStringsTheLongestAnswerAndTheContextEndWhereTheyShould) {
  Request stopped = question("05.png", "Describe this image in detail.");
  stopped.sampling.stop = {" pink back"};
  expect_same(stopped);
  for (const int most : {1, 2, 3, 33}) expect_same(endless("Hello", most));
  expect_same(endless("Hello", 100'000));
}

TEST_F(LaunchAheadTest, ALineOfCountsStartsAnewAfterARowThatNobodyWanted) {
  for (const char* text : {"Hello", "What is this?", "Hello"}) {
    Request request = question("", text);  // ends by itself, while its line counts on
    request.sampling.temperature = 0.0F;
    request.sampling.frequency_penalty = 1.0F;
    expect_same(request);
  }
}

TEST_F(LaunchAheadTest, AnAnswerDependsNotOnWhoEndsBesideIt) {
  const Answer alone = plain_->answer(likeliest(120));
  const int64_t before = ahead_->status().completion_tokens;
  Pending same(*ahead_, likeliest(120));
  std::vector<Pending> others;
  others.reserve(6);
  for (int i = 0; i < 6; ++i)
    others.emplace_back(*ahead_, drawn(100 + static_cast<uint64_t>(i), 7 + 9 * i));
  int64_t tokens = 0;
  for (Pending& other : others) tokens += other.get().usage.completion_tokens;
  const Answer answer = same.get();
  EXPECT_EQ(answer.tokens, alone.tokens);
  EXPECT_EQ(ahead_->status().completion_tokens - before, tokens + answer.usage.completion_tokens);
}

TEST_F(LaunchAheadTest, AnswersWithAFormStandBesideFreeOnes) {
  Request formed = drawn(3, 60);
  formed.sampling.ignore_eos = false;
  formed.response_format = {.kind = ResponseFormat::Kind::json_schema,
                            .json_schema = R"({"type": "array", "items": {"type": "integer"}})"};
  expect_same(formed);
  formed.sampling.temperature = 0;
  const Answer alone = plain_->answer(likeliest(80));
  const Answer formed_alone = plain_->answer(formed);
  Pending free_one(*ahead_, likeliest(80));
  Pending formed_one(*ahead_, formed);
  EXPECT_EQ(free_one.get().tokens, alone.tokens);
  EXPECT_EQ(formed_one.get().tokens, formed_alone.tokens);
}

TEST_F(LaunchAheadTest, PreemptedAnswersAreTheSame) {
  std::vector<Request> requests;
  std::vector<Answer> expected;
  for (const char* file : {"00.png", "05.png", "07.png"}) {
    requests.push_back(question(file, "Describe this image."));
    requests.back().sampling.ignore_eos = true;
    requests.back().sampling.max_tokens = 150;
    expected.push_back(plain_->answer(requests.back()));
  }
  EngineOptions options = options_of(LaunchAhead::always, 3);
  options.context = 480;
  options.kv_tokens = 480;
  options.picture_cache_bytes = 1;
  Engine small(options);
  std::vector<Pending> pending;
  for (const Request& request : requests) pending.emplace_back(small, request);
  for (size_t i = 0; i < pending.size(); ++i) {
    EXPECT_EQ(pending[i].get().tokens, expected[i].tokens);
  }
  EXPECT_GT(small.status().preemptions, 0);
  EXPECT_EQ(small.status().kv_pages_used, 0);
}

TEST_F(LaunchAheadTest, CancellingLeavesTheOthersAlone) {
  const Answer alone = plain_->answer(likeliest(300));
  Pending kept(*ahead_, likeliest(300));
  for (int i = 0; i < 5; ++i) {
    std::promise<void> started;
    std::promise<void> ended;
    int num_events = 0;
    const RequestId id = ahead_->submit(drawn(77, 2000), [&](const Event& event) {
      if (++num_events == 1 + 3 * i) started.set_value();
      if (event.kind != Event::Kind::text) ended.set_value();
    });
    started.get_future().wait();
    ahead_->cancel(id);
    ended.get_future().wait();
  }
  EXPECT_EQ(kept.get().tokens, alone.tokens);
  EXPECT_EQ(ahead_->status().kv_pages_used, 0);
}

TEST_F(LaunchAheadTest, ACallerWhoseHandlerThrowsIsCancelledAlone) {
  const Answer alone = plain_->answer(likeliest(100));
  Pending kept(*ahead_, likeliest(100));
  EXPECT_THROW(static_cast<void>(ahead_->answer(
                   drawn(8, 2000), [](const Event&) { throw std::runtime_error("gone"); })),
               Error);
  EXPECT_EQ(kept.get().tokens, alone.tokens);
}

}  // namespace
}  // namespace glimpse
