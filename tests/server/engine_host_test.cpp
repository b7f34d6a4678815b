#include "server/engine_host.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "demo_engine.h"
#include "glimpse/error.h"

namespace glimpse {
namespace {

using namespace std::chrono_literals;

using testing::load_demo;

void unload(EngineHost& host) {
  while (!host.unload_if_idle()) std::this_thread::yield();
}

TEST(EngineHost, AnswersAboutItselfWhileALoadIsUnderWay) {
  std::promise<void> begun;
  std::promise<void> may_go_on;
  int num_loads = 0;
  EngineHost host(
      [&] {
        if (++num_loads == 2) {
          begun.set_value();
          may_go_on.get_future().wait();
        }
        return load_demo();
      },
      1ms);
  EXPECT_TRUE(host.status().has_value());
  unload(host);
  EXPECT_FALSE(host.status().has_value());
  EXPECT_FALSE(host.is_loading());

  auto first = std::async(std::launch::async, [&] { return host.lease(); });
  begun.get_future().wait();
  EXPECT_TRUE(host.is_loading());
  EXPECT_FALSE(host.status().has_value());
  EXPECT_EQ(host.model().context, 256);
  EXPECT_FALSE(host.unload_if_idle());
  auto second = std::async(std::launch::async, [&] { return host.lease(); });
  may_go_on.set_value();
  EXPECT_EQ(&first.get()->engine(), &second.get()->engine());
  EXPECT_EQ(num_loads, 2);
  EXPECT_FALSE(host.is_loading());
}

TEST(EngineHost, StaysLoadedWhileItIsLent) {
  EngineHost host(load_demo, 1ms);
  auto lease = host.lease();
  std::this_thread::sleep_for(2ms);
  EXPECT_FALSE(host.unload_if_idle());
  lease.reset();
  unload(host);
  EXPECT_TRUE(host.lease()->engine().status().healthy);
}

TEST(EngineHost, ALoadThatFailsIsTriedAgain) {
  int num_loads = 0;
  EngineHost host(
      [&] {
        if (++num_loads == 2) throw Error(ErrorCode::out_of_memory, "full");
        return load_demo();
      },
      1ms);
  unload(host);
  EXPECT_THROW((void)host.lease(), Error);
  EXPECT_FALSE(host.is_loading());
  EXPECT_TRUE(host.lease()->engine().status().healthy);
}

}  // namespace
}  // namespace glimpse
