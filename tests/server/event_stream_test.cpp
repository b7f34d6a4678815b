// Server-sent events: the bytes of one event, and the events of whole answers of an engine.
#include "server/event_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "demo_engine.h"
#include "recording_exchange.h"
#include "server/generation.h"

namespace glimpse {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using testing::Recorded;
using testing::RecordingExchange;
using ::testing::StartsWith;

// ---- one event --------------------------------------------------------------------------------

TEST(StreamEvent, EndsWithAnEmptyLine) {
  EXPECT_EQ(stream_event("{\"a\":1}"), "data: {\"a\":1}\n\n");
  EXPECT_EQ(stream_event(""), "data: \n\n");
  EXPECT_EQ(stream_event(kStreamEnd), "data: [DONE]\n\n");
}

TEST(StreamEvent, EveryLineOfItsDataIsALineOfItsOwn) {
  EXPECT_EQ(stream_event("a\nb"), "data: a\ndata: b\n\n");
  EXPECT_EQ(stream_event("a\r\nb\rc\n"), "data: a\ndata: b\ndata: c\ndata: \n\n");
  EXPECT_EQ(stream_event("\n\n"), "data: \ndata: \ndata: \n\n");
  EXPECT_EQ(stream_event("data: x\n\ndata: [DONE]"),
            "data: data: x\ndata: \ndata: data: [DONE]\n\n");
}

// ---- whole answers ----------------------------------------------------------------------------

EngineHost& host() {
  static EngineHost shared(testing::load_demo, std::chrono::milliseconds(0));
  return shared;
}

Recorded answer_to(ApiKind kind, const Json& body) {
  RequestRules rules;
  ApiRequest request = kind == ApiKind::chat ? parse_chat_request(body.dump(), rules)
                                             : parse_completion_request(body.dump(), rules);
  const auto exchange = std::make_shared<RecordingExchange>();
  std::future<Recorded> done = exchange->done();
  const ApiAnswerHead head{.kind = kind,
                           .id = "id-1",
                           .created = 7,
                           .model = "demo",
                           .choices_per_prompt = request.choices_per_prompt};
  std::make_shared<Generation>(host().lease(), exchange, head, [](const GenerationRecord&) {
  })->start(std::move(request));
  return done.get();
}

/// What stands in the events; the last must be [DONE].
std::vector<Json> events_of(const Recorded& recorded) {
  EXPECT_EQ(recorded.heads, 1);
  EXPECT_EQ(recorded.content_type, "text/event-stream");
  EXPECT_FALSE(recorded.response.has_value());
  EXPECT_EQ(recorded.pieces.back(), "data: [DONE]\n\n");
  std::vector<Json> events;
  for (size_t i = 0; i + 1 < recorded.pieces.size(); ++i) {
    const std::string& piece = recorded.pieces[i];
    EXPECT_THAT(piece, StartsWith("data: {"));
    EXPECT_THAT(piece, EndsWith("}\n\n"));
    EXPECT_EQ(piece.find('\n'), piece.size() - 2) << "one event, on one line: " << piece;
    events.push_back(Json::parse(piece.substr(6)));
  }
  return events;
}

Json chat(const Json& options) {
  Json body = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
               {"max_tokens", 5},
               {"temperature", 0},
               {"ignore_eos", true}};
  body.update(options);
  return body;
}

TEST(StreamedAnswer, HasItsRoleFirstAndOneEventAPieceAndEndsWithItsReason) {
  const Recorded whole = answer_to(ApiKind::chat, chat(Json::object()));
  const Json message = Json::parse(whole.response.value().body)["choices"][0]["message"];
  const std::vector<Json> events = events_of(answer_to(ApiKind::chat, chat({{"stream", true}})));
  ASSERT_GE(events.size(), 3U);
  EXPECT_EQ(events.front()["choices"][0]["delta"]["role"], "assistant");
  std::string text;
  for (const Json& event : events) {
    EXPECT_EQ(event["id"], "id-1");
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    ASSERT_EQ(event["choices"].size(), 1U);
    EXPECT_EQ(event["choices"][0]["finish_reason"].is_null(), &event != &events.back());
    EXPECT_FALSE(event.contains("usage"));
    text += event["choices"][0]["delta"].value("content", "");
  }
  EXPECT_EQ(text, message["content"]);
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");
}

TEST(StreamedAnswer, ItsUsageStandsInOneEventOfItsOwnBehindTheLastChoice) {
  const std::vector<Json> events = events_of(
      answer_to(ApiKind::chat,
                chat({{"stream", true}, {"n", 2}, {"stream_options", {{"include_usage", true}}}})));
  for (const Json& event : events) {
    EXPECT_EQ(event.contains("usage") && !event["usage"].is_null(), &event == &events.back());
  }
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 10);
}

TEST(StreamedAnswer, EveryChoiceHasItsRoleItsTextAndItsEnd) {
  std::vector<int> roles(3);
  std::vector<int> ends(3);
  for (const Json& event :
       events_of(answer_to(ApiKind::chat, chat({{"stream", true}, {"n", 3}})))) {
    const Json& choice = event["choices"][0];
    const auto index = choice["index"].get<size_t>();
    ASSERT_LT(index, 3U);
    EXPECT_EQ(ends[index], 0) << "nothing comes after a choice's end";
    roles[index] += choice["delta"].contains("role") ? 1 : 0;
    ends[index] += choice["finish_reason"].is_null() ? 0 : 1;
  }
  EXPECT_THAT(roles, ElementsAre(1, 1, 1));
  EXPECT_THAT(ends, ElementsAre(1, 1, 1));
}

TEST(StreamedAnswer, ACompletionHasNoRoles) {
  for (const Json& event : events_of(answer_to(
           ApiKind::completion, {{"prompt", "A red"}, {"max_tokens", 3}, {"stream", true}}))) {
    EXPECT_EQ(event["object"], "text_completion");
    EXPECT_TRUE(event["choices"][0]["text"].is_string());
  }
}

TEST(StreamedAnswer, AnErrorBeforeTheFirstEventStillHasItsStatus) {
  std::string prompt;
  for (int i = 0; i < 2000; ++i) prompt += "word ";  // more than the context of 256
  const Recorded recorded = answer_to(ApiKind::completion, {{"prompt", prompt}, {"stream", true}});
  EXPECT_EQ(recorded.heads, 0);
  EXPECT_TRUE(recorded.pieces.empty());
  EXPECT_EQ(recorded.response.value().status, 400);
  EXPECT_TRUE(Json::parse(recorded.response->body).contains("error"));
}

}  // namespace
}  // namespace glimpse
