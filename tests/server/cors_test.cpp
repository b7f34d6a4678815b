// Which origins the server's answers are opened to.
#include "server/cors.h"

#include <gtest/gtest.h>

#include <map>

namespace glimpse {
namespace {

using Headers = std::map<std::string, std::string>;

Headers headers_for(const CorsList& list, std::string_view origin) {
  HttpResponse response;
  list.decorate(origin, response);
  return {response.headers.begin(), response.headers.end()};
}

TEST(CorsList, AListedOriginIsNamedInTheAnswer) {
  const CorsList list({"https://a.example", "http://localhost:3000"});
  for (const char* origin : {"https://a.example", "http://localhost:3000"}) {
    const Headers headers = headers_for(list, origin);
    EXPECT_EQ(headers.at("Access-Control-Allow-Origin"), origin);
    EXPECT_EQ(headers.at("Access-Control-Expose-Headers"), "X-Request-Id, Retry-After");
    EXPECT_EQ(headers.at("Vary"), "Origin");
  }
}

TEST(CorsList, AnyOtherOriginIsNot) {
  const CorsList list({"https://a.example"});
  for (const char* origin :
       {"https://b.example", "http://a.example", "https://a.example:444", "https://a.example.org",
        "https://x.a.example", "https://a.exampl", "null", "*", ""}) {
    EXPECT_EQ(headers_for(list, origin).count("Access-Control-Allow-Origin"), 0U) << origin;
  }
}

// A cache that kept the answer to one origin would else give it to another.
TEST(CorsList, CachesAreToldThatTheAnswerDependsOnTheOrigin) {
  const CorsList list({"https://a.example"});
  for (const char* origin : {"https://a.example", "https://b.example", ""}) {
    EXPECT_EQ(headers_for(list, origin).at("Vary"), "Origin") << origin;
  }
}

TEST(CorsList, AStarOpensToEveryOriginAndAnEmptyListToNone) {
  EXPECT_EQ(headers_for(CorsList({"https://a.example", "*"}), "https://b.example")
                .at("Access-Control-Allow-Origin"),
            "*");
  EXPECT_TRUE(headers_for(CorsList({"*"}), "").empty());
  EXPECT_TRUE(headers_for(CorsList({}), "https://a.example").empty());
}

TEST(CorsList, APreflightTellsTheMethodAndTheHeadersOfARoute) {
  HttpResponse response = preflight_answer("POST");
  EXPECT_EQ(response.status, 204);
  EXPECT_TRUE(response.body.empty());
  const Headers headers(response.headers.begin(), response.headers.end());
  EXPECT_EQ(headers.at("Allow"), "POST, OPTIONS");
  EXPECT_EQ(headers.at("Access-Control-Allow-Methods"), "POST");
  EXPECT_EQ(headers.at("Access-Control-Allow-Headers"),
            "Authorization, Content-Type, X-Request-Id");
  EXPECT_EQ(headers.count("Access-Control-Allow-Origin"), 0U);  // who may call is another matter
}

}  // namespace
}  // namespace glimpse
