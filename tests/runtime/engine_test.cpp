// The engine as its users know it: batches, caches, preemption, cancelling, errors. One engine
// serves the tests that do not care how it was started.
#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <thread>

#include <gtest/gtest.h>

#include "runtime/demo_golden.h"

namespace glimpse {
namespace {

using namespace glimpse::testing;
using namespace std::chrono_literals;

std::unique_ptr<Engine> shared;

Engine& shared_engine() {
  if (!shared) shared = std::make_unique<Engine>(cpu_options(8));
  return *shared;
}

// Not left to the end of the process: OpenSSL cleans up there, before the engine's threads end.
class SharedEngine : public ::testing::Environment {
 public:
  void TearDown() override { shared.reset(); }
};
[[maybe_unused]] const auto* const kSharedEngine =
    ::testing::AddGlobalTestEnvironment(new SharedEngine);

// Answers without end: the demo checkpoint stops soon by itself.
Request endless(const std::string& file, const std::string& text, int max_tokens) {
  Request request = question(file, text);
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = max_tokens;
  return request;
}

ErrorCode refusal(Engine& engine, Request request) {
  try {
    const Answer answer = engine.answer(std::move(request));
    ADD_FAILURE() << "it was answered: " << answer.text;
  } catch (const Error& error) {
    EXPECT_FALSE(std::string(error.what()).empty());
    return error.code();
  }
  return ErrorCode::internal;
}

TEST(Engine, CaptionsAPictureInOneLine) {
  EXPECT_EQ(shared_engine().caption(demo_golden_dir() / "pictures" / "05.png"),
            "The image shows one object on a pink background. A face with peeking eye is on the "
            "left.");
}

TEST(Engine, TheBundledModelIsWhatItSays) {
  const ModelInfo& info = shared_engine().model();
  EXPECT_EQ(info.name, "demo");
  EXPECT_EQ(info.weight_format, "fp8");
  EXPECT_EQ(info.max_sequences, 8);
  EXPECT_EQ(info.image_token_id, 4082);
  EXPECT_GT(info.num_parameters, 20'000'000);
  EXPECT_GT(info.load_milliseconds, 0);
}

TEST(Engine, EightAtOnceGetTheAnswersOfOneAtATime) {
  std::vector<GoldenAnswer> goldens = golden_answers();
  std::erase_if(goldens, [](const GoldenAnswer& golden) { return golden.smallest_gap < 0.01; });
  goldens.resize(8);
  EngineOptions options = cpu_options(1);
  Engine single(options);
  const std::vector<Answer> together = ask_all(shared_engine(), goldens);
  for (size_t i = 0; i < goldens.size(); ++i) {
    EXPECT_EQ(together[i].tokens, single.answer(question(goldens[i])).tokens) << goldens[i].prompt;
  }
}

TEST(Engine, EventsAreTheAnswerInPieces) {
  std::string text;
  std::vector<int32_t> tokens;
  int num_last = 0;
  const Answer answer = shared_engine().answer(
      question("07.png", "Describe this image in detail."), [&](const Event& event) {
        text += event.text;
        tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
        num_last += event.kind == Event::Kind::text ? 0 : 1;
      });
  EXPECT_EQ(text, answer.text);
  EXPECT_EQ(tokens, answer.tokens);
  EXPECT_EQ(num_last, 1);
  EXPECT_EQ(answer.usage.completion_tokens, std::ssize(answer.tokens));
}

TEST(Engine, UsageAndTimingsTellWhatHappened) {
  Engine engine(cpu_options(1));
  const Answer first = engine.answer(question("05.png", "Describe this image."));
  ASSERT_EQ(first.usage.pictures.size(), 1U);
  const PictureUsage& picture = first.usage.pictures[0];
  EXPECT_FALSE(picture.from_cache);
  EXPECT_EQ(picture.visual_tokens, int64_t{picture.grid_h} * picture.grid_w / 4);
  EXPECT_EQ(picture.resized_width, picture.grid_w * 16);
  EXPECT_GT(first.timings.vision, 0);
  EXPECT_GT(first.timings.prefill, 0);
  EXPECT_GE(first.timings.total, first.timings.first_token + first.timings.decode - 1);

  const Answer second = engine.answer(question("05.png", "What color is the background?"));
  EXPECT_TRUE(second.usage.pictures[0].from_cache);
  EXPECT_EQ(second.timings.vision, 0);
  EXPECT_EQ(engine.status().picture_cache_hits, 1);
  EXPECT_EQ(engine.status().pictures, 1);
}

/// A conversation after its first answer, with another question about the same picture.
Request second_turn(Request request, std::string first_answer) {
  Message answer;
  answer.role = "assistant";
  answer.parts.push_back(Part::of_text(std::move(first_answer)));
  Message next;
  next.role = "user";
  next.parts.push_back(Part::of_text("What color is the background?"));
  request.messages.push_back(std::move(answer));
  request.messages.push_back(std::move(next));
  return request;
}

TEST(Engine, ARepeatedBeginningIsReusedWithTheSameAnswer) {
  Engine engine(cpu_options(1));
  const auto conversation = [] {
    return second_turn(question("00.png", "Describe this image."),
                       "A hot face and the text \"Peace\" on a teal background.");
  };
  const Answer fresh = engine.answer(conversation());
  EXPECT_EQ(fresh.usage.cached_prompt_tokens, 0);
  const Answer again = engine.answer(conversation());
  EXPECT_GE(again.usage.cached_prompt_tokens, 160);
  EXPECT_EQ(again.tokens, fresh.tokens);
  EXPECT_TRUE(again.usage.pictures[0].from_cache);
  EXPECT_EQ(engine.status().prefix_cache_hit_tokens, again.usage.cached_prompt_tokens);
}

// What the first turn decoded is found again by the second, which sends it as part of its prompt.
TEST(Engine, TheNextTurnOfAConversationFindsTheAnswerBeforeItInTheCache) {
  constexpr int64_t kPageTokens = 32;
  Engine engine(cpu_options(1));
  const std::string prompt = "Describe this image in detail.";
  const Answer first = engine.answer(question("05.png", prompt));
  const int64_t prompt_pages = first.usage.prompt_tokens / kPageTokens;
  ASSERT_GT((first.usage.prompt_tokens + first.usage.completion_tokens) / kPageTokens, prompt_pages)
      << "the answer must fill a page of its own";

  const auto next_turn = [&] { return second_turn(question("05.png", prompt), first.text); };
  const Answer second = engine.answer(next_turn());
  EXPECT_GT(second.usage.cached_prompt_tokens, prompt_pages * kPageTokens);
  EXPECT_TRUE(second.usage.pictures[0].from_cache);
  EXPECT_EQ(second.timings.vision, 0);
  Engine fresh(cpu_options(1));
  EXPECT_EQ(second.tokens, fresh.answer(next_turn()).tokens);
}

TEST(Engine, TheSameQuestionAboutAnotherPictureFindsNothingInTheCaches) {
  Engine engine(cpu_options(1));
  const std::string prompt = "Describe this image.";
  static_cast<void>(engine.answer(question("05.png", prompt)));
  const Answer other = engine.answer(question("02.png", prompt));
  EXPECT_EQ(other.usage.cached_prompt_tokens, 0);
  EXPECT_FALSE(other.usage.pictures[0].from_cache);
}

TEST(Engine, PreemptedAnswersAreTheSame) {
  const std::vector<std::string> files = {"00.png", "05.png", "07.png"};
  std::vector<Request> requests;
  for (const std::string& file : files)
    requests.push_back(endless(file, "Describe this image.", 150));
  std::vector<Answer> expected;
  for (const Request& request : requests) expected.push_back(shared_engine().answer(request));

  // 15 pages: two sequences start with 5 each and want 10 in the end. The store holds one picture,
  // so that a preempted sequence must look at its picture again.
  EngineOptions options = cpu_options(3);
  options.context = 480;
  options.kv_tokens = 480;
  options.picture_cache_bytes = 1;
  Engine small(options);
  std::vector<Pending> pending;
  for (const Request& request : requests) pending.emplace_back(small, request);
  for (size_t i = 0; i < pending.size(); ++i) {
    const Answer answer = pending[i].get();
    EXPECT_EQ(answer.tokens, expected[i].tokens) << files[i];
    EXPECT_EQ(answer.finish_reason, FinishReason::length);
  }
  EXPECT_GT(small.status().preemptions, 0);
  EXPECT_EQ(small.status().kv_pages_used, 0);
}

TEST(Engine, EqualSeedsGiveEqualAnswersWhateverElseIsAsked) {
  const auto sampled = [](uint64_t seed) {
    Request request = endless("", "Hello", 30);
    request.sampling.temperature = 3.0F;
    request.sampling.top_k = 0;
    request.sampling.seed = seed;
    return request;
  };
  Engine& engine = shared_engine();
  const std::vector<int32_t> alone = engine.answer(sampled(7)).tokens;
  EXPECT_NE(engine.answer(sampled(8)).tokens, alone);
  Pending other_1(engine, endless("05.png", "Describe this image.", 40));
  Pending same(engine, sampled(7));
  Pending other_2(engine, sampled(9));
  EXPECT_EQ(same.get().tokens, alone);
  static_cast<void>(other_1.get());
  static_cast<void>(other_2.get());
}

TEST(Engine, PenaltiesKeepTokensFromComingAgain) {
  Request request = endless("", "Hello", 40);
  request.sampling.presence_penalty = 2;
  request.sampling.frequency_penalty = 2;
  request.sampling.repetition_penalty = 10.0F;
  const std::vector<int32_t> penalised = shared_engine().answer(request).tokens;
  request.sampling = endless("", "", 40).sampling;
  const std::vector<int32_t> plain = shared_engine().answer(request).tokens;
  const auto distinct = [](std::vector<int32_t> tokens) {
    std::sort(tokens.begin(), tokens.end());
    return std::unique(tokens.begin(), tokens.end()) - tokens.begin();
  };
  EXPECT_GT(distinct(penalised), distinct(plain));
}

TEST(Engine, AStopStringEndsTheAnswerBeforeIt) {
  Request request = question("05.png", "Describe this image in detail.");
  request.sampling.stop = {" pink back"};
  const Answer answer = shared_engine().answer(request);
  EXPECT_EQ(answer.text, "The image shows one object on a");
  EXPECT_EQ(answer.finish_reason, FinishReason::stop);
}

TEST(Engine, MaxTokensEndsTheAnswer) {
  Request request = question("05.png", "Describe this image in detail.");
  request.sampling.max_tokens = 4;
  const Answer answer = shared_engine().answer(request);
  EXPECT_EQ(answer.tokens.size(), 4U);
  EXPECT_EQ(answer.finish_reason, FinishReason::length);
}

TEST(Engine, TheContextEndsAnAnswerThatReachesIt) {
  EngineOptions options = cpu_options(1);
  options.context = 256;
  Engine engine(options);
  const Answer answer = engine.answer(endless("05.png", "Describe this image.", 1000));
  EXPECT_EQ(answer.usage.prompt_tokens + answer.usage.completion_tokens, 256);
  EXPECT_EQ(answer.finish_reason, FinishReason::length);
}

TEST(Engine, TextAloneRawPromptsAndRawTokensAreAnsweredAlike) {
  Engine& engine = shared_engine();
  Request chat = question("", "Hello");
  const Answer from_chat = engine.answer(chat);
  Request raw;
  raw.raw_prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(engine.answer(raw).tokens, from_chat.tokens);
}

TEST(Engine, APictureInRawTokensIsExpanded) {
  const Json golden = read_json_file(demo_golden_dir() / "answers.json")[0];
  Request raw;
  for (const Json& id : golden["prompt_ids"]) {
    const auto token = id.get<int32_t>();
    if (token == 4082 && !raw.raw_tokens.empty() && raw.raw_tokens.back() == 4082) continue;
    raw.raw_tokens.push_back(token);
  }
  Picture picture;
  picture.path = demo_golden_dir() / "pictures" / "00.png";
  raw.raw_pictures.push_back(picture);
  const Answer answer = shared_engine().answer(raw);
  EXPECT_EQ(answer.usage.prompt_tokens, std::ssize(golden["prompt_ids"]));
  EXPECT_EQ(answer.text, golden["answers"][0]["text"].get<std::string>());
}

TEST(Engine, CancellingEndsARequestAtOnceAndNoOther) {
  Engine& engine = shared_engine();
  std::promise<void> started;
  std::promise<Event> ended;
  std::atomic<int> num_events = 0;
  const RequestId id = engine.submit(endless("", "Hello", 3000), [&](const Event& event) {
    if (num_events++ == 0) started.set_value();
    if (event.kind != Event::Kind::text) ended.set_value(event);
  });
  Pending other(engine, question("05.png", "Describe this image."));
  started.get_future().wait();
  engine.cancel(id);
  const Event last = ended.get_future().get();
  EXPECT_EQ(last.finish_reason, FinishReason::cancelled);
  ASSERT_TRUE(last.error.has_value());
  EXPECT_EQ(last.error->code(), ErrorCode::cancelled);
  EXPECT_LT(last.usage.completion_tokens, 3000);
  EXPECT_FALSE(other.get().text.empty());
}

TEST(Engine, CancellingBeforeAndDuringTheVisionPassLeavesNothingBehind) {
  Engine engine(cpu_options(2));
  for (int i = 0; i < 12; ++i) {
    Pending pending(engine, question("07.png", "Describe this image in detail."));
    std::this_thread::sleep_for(std::chrono::milliseconds(9 * i));
    engine.cancel(pending.id());
    try {
      static_cast<void>(pending.get());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::cancelled);
    }
  }
  EXPECT_EQ(engine.caption(demo_golden_dir() / "pictures" / "05.png").substr(0, 9), "The image");
  EXPECT_EQ(engine.status().kv_pages_used, 0);
  EXPECT_EQ(engine.status().running, 0);
}

TEST(Engine, DestroyingItCancelsWhatIsOpen) {
  std::optional<Pending> pending;
  {
    Engine engine(cpu_options(1));
    pending.emplace(engine, endless("", "Hello", 3000));
  }
  EXPECT_THROW(static_cast<void>(pending->get()), Error);
}

TEST(Engine, ACallerWhoseHandlerThrowsIsCancelledAlone) {
  EXPECT_THROW(static_cast<void>(shared_engine().answer(
                   endless("", "Hello", 3000),
                   [](const Event&) { throw std::runtime_error("the client is gone"); })),
               Error);
  EXPECT_FALSE(shared_engine().answer(question("05.png", "Describe this image.")).text.empty());
}

TEST(Engine, ManyThreadsMayAskAtOnce) {
  Engine& engine = shared_engine();
  const std::vector<GoldenAnswer> goldens = golden_answers();
  std::vector<std::thread> threads;
  std::atomic<int> num_right = 0;
  for (size_t i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      for (size_t j = 0; j < 3; ++j) {
        const GoldenAnswer& golden = goldens[5 * i + j];
        if (engine.answer(question(golden)).tokens == golden.ids) ++num_right;
        static_cast<void>(engine.status());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_right, 18);
}

TEST(Engine, AFullQueueIsSaidAtOnce) {
  EngineOptions options = cpu_options(1);
  options.max_queue = 1;
  Engine engine(options);
  std::promise<void> started;
  bool first = true;
  const RequestId running = engine.submit(endless("", "Hello", 3000), [&](const Event&) {
    if (first) started.set_value();
    first = false;
  });
  started.get_future().wait();
  Pending waiting(engine, question("", "Hello"));
  try {
    engine.submit(question("", "Hello"), {});
    FAIL() << "a third request was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::overloaded);
  }
  engine.cancel(running);
  EXPECT_NO_THROW(static_cast<void>(waiting.get()));
}

TEST(EngineErrors, ARequestsFaultIsItsOwn) {
  Engine& engine = shared_engine();
  EXPECT_EQ(refusal(engine, {}), ErrorCode::invalid_argument);
  EXPECT_EQ(refusal(engine, question("missing.png", "Hello")), ErrorCode::not_found);

  Request not_a_picture = question("", "Hello");
  Picture text;
  text.name = "notes.txt";
  for (const char c : std::string("these are only words")) text.bytes.push_back(std::byte(c));
  not_a_picture.messages[0].parts.push_back(Part::of_picture(text));
  EXPECT_EQ(refusal(engine, not_a_picture), ErrorCode::bad_picture);

  Request too_long;
  too_long.raw_tokens.assign(5000, 5);
  EXPECT_EQ(refusal(engine, too_long), ErrorCode::context_exceeded);
  Request outside;
  outside.raw_tokens = {1, 2, 4096};
  EXPECT_EQ(refusal(engine, outside), ErrorCode::invalid_argument);
  Request no_picture;
  no_picture.raw_prompt = "<|vision_start|><|image_pad|><|vision_end|>";
  EXPECT_EQ(refusal(engine, no_picture), ErrorCode::invalid_argument);
  Request two_kinds = question("", "Hello");
  two_kinds.raw_prompt = "Hello";
  EXPECT_EQ(refusal(engine, two_kinds), ErrorCode::invalid_argument);
  Request too_many_pixels = question("05.png", "Hello");
  too_many_pixels.messages[0].parts[0].picture->max_pixels = 10'000'000;
  EXPECT_EQ(refusal(engine, too_many_pixels), ErrorCode::invalid_argument);

  EXPECT_TRUE(engine.status().healthy);
  EXPECT_FALSE(engine.answer(question("05.png", "Describe this image.")).text.empty());
}

TEST(EngineErrors, APromptThatIsTooLongSaysByHowMuch) {
  Request request;
  request.raw_tokens.assign(4096, 5);
  try {
    static_cast<void>(shared_engine().answer(request));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "prompt has 4096 tokens, context is 4096");
    EXPECT_FALSE(error.hint().empty());
  }
}

TEST(EngineErrors, SamplingOutsideItsRangeIsRefused) {
  const auto with = [](auto change) {
    Request request = question("", "Hello");
    change(request.sampling);
    return request;
  };
  using S = SamplingOptions;
  Engine& engine = shared_engine();
  for (const Request& request : {
           with([](S& s) { s.temperature = -1.0F; }),
           with([](S& s) { s.temperature = std::numeric_limits<float>::quiet_NaN(); }),
           with([](S& s) { s.top_p = 0.0F; }),
           with([](S& s) { s.top_p = 1.5F; }),
           with([](S& s) { s.min_p = -0.1F; }),
           with([](S& s) { s.repetition_penalty = 0.0F; }),
           with([](S& s) { s.presence_penalty = 2.5F; }),
           with([](S& s) { s.max_tokens = 0; }),
           with([](S& s) { s.logprobs = 21; }),
           with([](S& s) { s.stop = {""}; }),
       }) {
    EXPECT_EQ(refusal(engine, request), ErrorCode::invalid_argument);
  }
}

TEST(EngineErrors, AnEngineThatCannotStartSaysWhy) {
  const auto start = [](auto change) {
    EngineOptions options = cpu_options(1);
    change(options);
    try {
      Engine engine(options);
    } catch (const Error& error) {
      return error.code();
    }
    ADD_FAILURE() << "it started";
    return ErrorCode::internal;
  };
  EXPECT_EQ(start([](EngineOptions& o) { o.model = "/nowhere/at/all"; }), ErrorCode::not_found);
  EXPECT_EQ(start([](EngineOptions& o) { o.context = -5; }), ErrorCode::invalid_argument);
  EXPECT_EQ(start([](EngineOptions& o) { o.context = 1 << 20; }), ErrorCode::invalid_argument);
  EXPECT_EQ(start([](EngineOptions& o) { o.memory_cap_bytes = 1 << 20; }),
            ErrorCode::out_of_memory);
}

TEST(Engine, LoadingReportsProgressToItsEnd) {
  std::vector<LoadProgress> seen;
  EngineOptions options = cpu_options(1);
  options.on_progress = [&](const LoadProgress& progress) { seen.push_back(progress); };
  Engine engine(options);
  ASSERT_FALSE(seen.empty());
  for (size_t i = 1; i < seen.size(); ++i) EXPECT_GE(seen[i].done_bytes, seen[i - 1].done_bytes);
  EXPECT_GT(seen.back().done_bytes, seen.back().total_bytes * 9 / 10);
}

TEST(Engine, TheStatusListsTheMemoryOfThePlan) {
  const EngineStatus status = shared_engine().status();
  EXPECT_TRUE(status.healthy);
  EXPECT_GT(status.resident_bytes, 0);
  EXPECT_GE(status.peak_resident_bytes, status.resident_bytes);
  EXPECT_EQ(status.kv_pages_total, 8 * 4096 / 32);
  EXPECT_TRUE(std::any_of(status.memory.begin(), status.memory.end(),
                          [](const MemoryItem& item) { return item.name == "kv cache"; }));
}

}  // namespace
}  // namespace glimpse
