// A step that does not come back: noticed, told to everyone who waits, and handed to the program.
#include "runtime/watchdog.h"

#include <atomic>
#include <future>

#include <gtest/gtest.h>

#include "runtime/demo_golden.h"

namespace glimpse {
namespace {

using namespace glimpse::testing;
using namespace std::chrono_literals;

TEST(Watchdog, CallsOnceForAStepThatDoesNotEnd) {
  std::promise<void> called;
  Watchdog watchdog(20ms, [&] { called.set_value(); });  // a second call would throw
  const WatchedStep step(&watchdog);
  EXPECT_EQ(called.get_future().wait_for(1min), std::future_status::ready);
}

TEST(Watchdog, IsSilentBetweenSteps) {
  std::atomic<int> calls = 0;
  {
    Watchdog watchdog(1min, [&] { ++calls; });
    for (int i = 0; i < 100; ++i) const WatchedStep step(&watchdog);
  }
  {
    Watchdog watchdog(1ms, [&] { ++calls; });  // looks many times, and nothing is under way
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_EQ(calls, 0);
}

// The step is stuck in a callback that does not return: on the CPU nothing else can hang it.
TEST(Watchdog, AStuckStepIsToldToEveryOpenRequestAndToTheProgram) {
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::promise<std::string> fault;
  EngineOptions options = cpu_options(2);
  options.stuck_step_seconds = 2;  // far more than a step of a short text takes
  options.on_stuck = [&](const std::string& sentence) { fault.set_value(sentence); };
  Engine engine(options);
  const auto ask = [&](const EventCallback& on_event) {
    Request request = question("", "What is this?");
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = 1000;
    engine.submit(std::move(request), on_event);
  };
  std::promise<void> blocked;
  ask([&, was_blocked = false](const Event& event) mutable {
    if (event.kind != Event::Kind::text || was_blocked) return;
    was_blocked = true;
    blocked.set_value();
    released.wait();
  });
  blocked.get_future().wait();
  std::promise<Error> told;
  ask([&](const Event& event) {
    if (event.kind == Event::Kind::failed) told.set_value(*event.error);  // twice would throw
  });
  EXPECT_EQ(told.get_future().get().code(), ErrorCode::device);
  EXPECT_FALSE(fault.get_future().get().empty());
  EXPECT_FALSE(engine.status().healthy);
  try {
    ask({});
    ADD_FAILURE() << "a stuck engine took a request";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::device);
  }
  release.set_value();
}

TEST(Watchdog, WithoutAHandlerTheProcessEndsWithItsOwnExitCode) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        EngineOptions options = cpu_options(1);
        options.stuck_step_seconds = 2;  // far more than a step of a short text takes
        Engine engine(options);
        engine.submit(question("", "What is this?"), [](const Event& event) {
          while (event.kind == Event::Kind::text) std::this_thread::sleep_for(1s);
        });
        std::this_thread::sleep_for(1h);
      },
      ::testing::ExitedWithCode(kStuckExitCode), "");
}

}  // namespace
}  // namespace glimpse
