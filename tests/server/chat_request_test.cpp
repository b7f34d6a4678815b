// Bodies of the API: what is understood, and what is refused by the name of its field.
#include "server/chat_request.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "base/data_url.h"
#include "base/json.h"
#include "server/request_error.h"

namespace glimpse {
namespace {

Json chat() {
  return Json::parse(R"({"messages": [{"role": "user", "content": "Hello"}]})");
}
Json chat_with(const std::string& name, const Json& value) {
  Json body = chat();
  body[name] = value;
  return body;
}
Json chat_about(const Json& image) {
  return {{"messages",
           {{{"role", "user"}, {"content", {{{"type", "image_url"}, {"image_url", image}}}}}}}};
}

RequestError refusal(const Json& body, const RequestRules& rules = {}) {
  try {
    (void)parse_chat_request(body.dump(), rules);
  } catch (const RequestError& error) {
    return error;
  }
  return {200, "accepted"};
}

Picture picture_of(const Json& image, const RequestRules& rules = {}) {
  const ApiRequest request = parse_chat_request(chat_about(image).dump(), rules);
  return *request.requests.front().messages.front().parts.front().picture;
}

std::string data_url(const std::string& bytes) {
  return encode_data_url({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
}

TEST(ChatRequest, TakesWhatItSaysAndLeavesTheRestToTheServer) {
  RequestRules rules;
  rules.sampling.temperature = 0.25F;
  rules.sampling.max_tokens = 77;
  rules.system = "Be brief.";
  Json body = chat();
  body.update({{"top_p", 0.5},
               {"stop", "x"},
               {"seed", -1},
               {"n", 3},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}},
               {"logprobs", true},
               {"model", "m"}});
  const ApiRequest request = parse_chat_request(body.dump(), rules);
  ASSERT_EQ(request.requests.size(), 3U);
  EXPECT_EQ(request.choices_per_prompt, 3U);
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
  EXPECT_EQ(request.model, "m");
  const SamplingOptions& sampling = request.requests[2].sampling;
  EXPECT_EQ(sampling.temperature, 0.25F);
  EXPECT_EQ(sampling.top_p, 0.5F);
  EXPECT_EQ(sampling.max_tokens, 77);
  EXPECT_EQ(sampling.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(sampling.logprobs, 0);
  EXPECT_EQ(sampling.seed, static_cast<uint64_t>(-1) + 2);  // counted up by choice
  EXPECT_EQ(request.requests[0].messages.front().role, "system");
}

TEST(ChatRequest, NullIsTheSameAsAbsent) {
  Json body = chat();
  for (const char* name : {"temperature", "stop", "n", "tools", "response_format", "stream",
                           "max_tokens", "logprobs", "seed", "model"}) {
    body[name] = nullptr;
  }
  EXPECT_EQ(refusal(body).status(), 200);
}

TEST(ChatRequest, RefusesByTheNameOfTheField) {
  const std::vector<std::pair<Json, std::string>> cases = {
      {Json::object(), "messages"},
      {{{"messages", Json::array()}}, "messages"},
      {chat_with("temperture", 1), "temperture"},
      {chat_with("temperature", 101), "temperature"},
      {chat_with("temperature", "hot"), "temperature"},
      {chat_with("n", 0), "n"},
      {chat_with("n", 33), "n"},
      {chat_with("n", 1.5), "n"},
      {chat_with("stop", {1}), "stop"},
      {chat_with("stop", ""), "stop"},
      {chat_with("stop", std::vector<std::string>(65, "x")), "stop"},
      {chat_with("top_logprobs", 3), "top_logprobs"},
      {chat_with("stream_options", {{"include_usage", true}}), "stream_options"},
      {chat_with("tool_choice", "required"), "tool_choice"},
      {chat_with("logit_bias", {{"5", 1}}), "logit_bias"},
      {chat_with("response_format", {{"type", "xml"}}), "response_format.type"},
      {{{"messages", {{{"role", "nobody"}, {"content", "x"}}}}}, "messages[0].role"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content"},
      {chat_about({{"url", "data:image/png;base64,!!!!"}}), "messages[0].content[0].image_url.url"},
      {chat_about({{"url", "/etc/passwd"}}), "messages[0].content[0].image_url.url"},
      {chat_about({{"url", "file:///etc/passwd"}}), "messages[0].content[0].image_url.url"},
      {chat_about({{"url", data_url("x")}, {"detail", "medium"}}),
       "messages[0].content[0].image_url.detail"},
      {chat_about({{"url", data_url("x")}, {"min_pixels", 9}, {"max_pixels", 8}}),
       "messages[0].content[0].image_url.min_pixels"},
  };
  for (const auto& [body, param] : cases) {
    const RequestError error = refusal(body);
    EXPECT_EQ(error.status(), 400) << body;
    EXPECT_EQ(error.param(), param) << body << ": " << error.what();
  }
  EXPECT_THROW((void)parse_chat_request("{", {}), RequestError);
  EXPECT_THROW((void)parse_chat_request("[]", {}), RequestError);
}

TEST(ChatRequest, PicturesHaveTheirOwnLimits) {
  const Picture picture =
      picture_of({{"url", data_url("bytes")}, {"min_pixels", 1000}, {"max_pixels", 2000}});
  EXPECT_EQ(picture.bytes.size(), 5U);
  EXPECT_EQ(picture.min_pixels, 1000);
  EXPECT_EQ(picture.max_pixels, 2000);
  EXPECT_EQ(picture_of({{"url", data_url("x")}, {"detail", "low"}}).max_pixels, 512 * 512);
  EXPECT_EQ(
      picture_of({{"url", data_url("x")}, {"detail", "low"}}, {.max_pixels = 70000}).max_pixels,
      70000);
  EXPECT_EQ(picture_of({{"url", data_url("x")}, {"detail", "high"}}).max_pixels, 0);
}

class MediaRoot : public ::testing::Test {
 protected:
  MediaRoot() {
    std::filesystem::create_directories(root_ / "inside");
    std::ofstream(root_ / "inside" / "a b.png") << "picture";
    std::ofstream(outside_) << "secret";
    std::filesystem::create_symlink(outside_, root_ / "inside" / "link.png");
    rules_.media_root = std::filesystem::canonical(root_ / "inside");
  }
  ~MediaRoot() override { std::filesystem::remove_all(root_); }
  [[nodiscard]] int status_of(const std::string& url) const {
    return refusal(chat_about({{"url", url}}), rules_).status();
  }

  std::filesystem::path root_ =
      std::filesystem::path(::testing::TempDir()) / ("glimpse-media-" + std::to_string(::getpid()));
  std::filesystem::path outside_ = root_ / "secret.png";
  RequestRules rules_;
};

TEST_F(MediaRoot, IsNotLeftByDotsLinksOrEscapes) {
  const std::string inside = "file://" + rules_.media_root.string();
  EXPECT_EQ(status_of(inside + "/a%20b.png"), 200);
  for (const std::string path : {"/../secret.png", "/%2e%2e/secret.png", "/link.png", "/",
                                 "/none.png", "/a%2", "/a%00.png", "-beside/x.png"}) {
    EXPECT_EQ(status_of(inside + path), 400) << path;
  }
  EXPECT_EQ(status_of("file://" + outside_.string()), 400);
  EXPECT_EQ(status_of("file://a%20b.png"), 400);
}

TEST(CompletionRequest, TakesTextTokensOrSeveral) {
  const auto count = [](const Json& prompt, int n) {
    const Json body = {{"prompt", prompt}, {"n", n}};
    return parse_completion_request(body.dump(), {}).requests.size();
  };
  EXPECT_EQ(count("text", 1), 1U);
  EXPECT_EQ(count({1, 2, 3}, 1), 1U);
  EXPECT_EQ(count({"a", "b"}, 2), 4U);
  EXPECT_EQ(count(Json::array({{1, 2}, {3}}), 1), 2U);
  for (const Json& prompt : {Json(""), Json::array(), Json::array({-1}), Json::array({1.5}),
                             Json(7), Json::array({Json::object()})}) {
    EXPECT_THROW((void)count(prompt, 1), RequestError) << prompt;
  }
}

}  // namespace
}  // namespace glimpse
