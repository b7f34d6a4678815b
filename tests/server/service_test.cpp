// The routes without sockets: what /health says of the engine, and what needs a key.
#include "server/service.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "demo_engine.h"
#include "recording_exchange.h"

namespace glimpse {
namespace {

using testing::demo_options;
using testing::Recorded;
using testing::RecordingExchange;

ServiceOptions quiet_options() {
  ServiceOptions options;
  options.access_log = false;
  return options;
}

HttpHead head_of(const std::string& method, const std::string& path) {
  HttpHead head;
  head.method = method;
  head.path = path;
  head.content_type = "application/json";
  return head;
}

/// What a connection would answer: the refusal of the head, or what the route says.
HttpResponse ask(Service& service, const HttpHead& head, const std::string& body = {}) {
  if (std::optional<HttpResponse> refusal = service.refuse(head)) return *refusal;
  const auto exchange = std::make_shared<RecordingExchange>();
  std::future<Recorded> done = exchange->done();
  service.handle(head, body, exchange);
  return done.get().response.value();
}

TEST(Service, HealthFollowsTheDrain) {
  EngineHost host([] { return std::make_unique<Engine>(demo_options()); },
                  std::chrono::milliseconds(0));
  Service service(host, quiet_options());
  const HttpResponse well = ask(service, head_of("GET", "/health"));
  EXPECT_EQ(well.status, 200);
  EXPECT_EQ(Json::parse(well.body)["status"], "ok");
  service.drain();
  EXPECT_EQ(ask(service, head_of("GET", "/health")).status, 503);
  EXPECT_EQ(ask(service, head_of("POST", "/v1/completions"), "{}").status, 503);
  EXPECT_EQ(ask(service, head_of("GET", "/v1/models")).status, 200);
  service.stop();
}

TEST(Service, OnlyHealthAndTheDocumentNeedNoKey) {
  EngineHost host([] { return std::make_unique<Engine>(demo_options()); },
                  std::chrono::milliseconds(0));
  ServiceOptions options = quiet_options();
  options.api_keys = {"one", "two"};
  Service service(host, options);
  for (const char* path : {"/v1/models", "/v1/status", "/metrics"}) {
    HttpHead head = head_of("GET", path);
    EXPECT_EQ(ask(service, head).status, 401) << path;
    head.authorization = "Bearer tw";
    EXPECT_EQ(ask(service, head).status, 401) << path;
    head.authorization = "Bearer two";
    EXPECT_EQ(ask(service, head).status, 200) << path;
  }
  EXPECT_EQ(ask(service, head_of("GET", "/health")).status, 200);
  EXPECT_EQ(ask(service, head_of("GET", "/openapi.json")).status, 200);
  // A browser sends no key with what it asks before a request.
  EXPECT_EQ(ask(service, head_of("OPTIONS", "/v1/models")).status, 204);
  service.stop();
}

TEST(Service, BodiesMustBeJsonInUtf8) {
  EngineHost host([] { return std::make_unique<Engine>(demo_options()); },
                  std::chrono::milliseconds(0));
  Service service(host, quiet_options());
  HttpHead head = head_of("POST", "/v1/completions");
  for (const char* type : {"application/json", "Application/JSON ; charset=\"UTF-8\""}) {
    head.content_type = type;
    EXPECT_EQ(ask(service, head, "{}").status, 400) << type;  // the prompt is missing
  }
  for (const char* type :
       {"", "text/plain", "application/jsonp", "application/json; charset=latin1"}) {
    head.content_type = type;
    EXPECT_EQ(ask(service, head, "{}").status, 415) << type;
  }
  service.stop();
}

// The step hangs in a callback that does not return, which the engine takes for a device fault.
TEST(Service, ADeviceFaultIsToldToOpenRequestsToNewOnesAndToHealth) {
  std::promise<void> release;
  std::promise<void> stuck;
  EngineHost host(
      [&] {
        EngineOptions options = demo_options();
        options.stuck_step_seconds = 2;  // far more than a step of a short text takes
        options.on_stuck = [&](const std::string&) { stuck.set_value(); };
        return std::make_unique<Engine>(options);
      },
      std::chrono::milliseconds(0));
  Service service(host, quiet_options());
  const std::string body = R"({"prompt": "Hi", "max_tokens": 200, "ignore_eos": true})";
  std::promise<void> blocked;
  {
    const auto lease = host.lease();
    Request request;
    Message message;
    message.role = "user";
    message.parts.push_back(Part::of_text("Hi"));
    request.messages.push_back(message);
    lease->engine().submit(std::move(request), [&, released = release.get_future().share(),
                                                was_blocked = false](const Event&) mutable {
      if (was_blocked) return;
      was_blocked = true;
      blocked.set_value();
      released.wait();
    });
  }
  blocked.get_future().wait();
  const HttpResponse open = ask(service, head_of("POST", "/v1/completions"), body);
  EXPECT_EQ(open.status, 503);
  stuck.get_future().wait();
  const HttpResponse health = ask(service, head_of("GET", "/health"));
  EXPECT_EQ(health.status, 503);
  EXPECT_NE(health.body.find("GPU"), std::string::npos) << health.body;
  EXPECT_EQ(ask(service, head_of("POST", "/v1/completions"), body).status, 503);
  release.set_value();
  service.stop();
}

}  // namespace
}  // namespace glimpse
