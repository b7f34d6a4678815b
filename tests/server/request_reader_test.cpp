// HTTP requests arrive in pieces of any size.
#include "server/request_reader.h"

#include <gtest/gtest.h>

#include "server/request_error.h"

namespace glimpse {
namespace {

const std::string kPost =
    "POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    "Authorization: Bearer key\r\nContent-Length: 11\r\n\r\n{\"a\": \"bc\"}";

// Feeds `bytes` in pieces of `size`; what a call leaves comes again with the next.
void feed(RequestReader& reader, std::string_view bytes, size_t size) {
  std::string pending;
  for (size_t at = 0; at < bytes.size(); at += size) {
    pending += bytes.substr(at, size);
    while (!pending.empty() && !reader.is_complete()) {
      const size_t used = reader.take(pending);
      pending.erase(0, used);
      if (used == 0) break;
    }
  }
}

int status_of(std::string_view bytes, const RequestLimits& limits) {
  RequestReader reader(limits);
  try {
    feed(reader, bytes, bytes.size());
  } catch (const RequestError& error) {
    return error.status();
  }
  return 0;
}

TEST(RequestReader, ReadsTheSameRequestInPiecesOfAnySize) {
  for (size_t size = 1; size <= kPost.size(); ++size) {
    RequestReader reader({});
    feed(reader, kPost, size);
    ASSERT_TRUE(reader.is_complete()) << size;
    EXPECT_EQ(reader.head().method, "POST");
    EXPECT_EQ(reader.head().path, "/v1/chat/completions");
    EXPECT_EQ(reader.head().authorization, "Bearer key");
    EXPECT_TRUE(reader.head().keep_alive);
    EXPECT_TRUE(reader.head().has_body);
    EXPECT_EQ(reader.take_body(), R"({"a": "bc"})");
  }
}

TEST(RequestReader, StopsBehindTheHeadSoThatItCanBeJudged) {
  RequestReader reader({});
  const size_t used = reader.take(kPost);
  EXPECT_TRUE(reader.has_head());
  EXPECT_FALSE(reader.is_complete());
  EXPECT_EQ(used, kPost.find("\r\n\r\n") + 4);
}

TEST(RequestReader, RefusesWhatIsTooLargeOrNoHttp) {
  const RequestLimits limits{.max_body_bytes = 10, .max_head_bytes = 256};
  EXPECT_EQ(status_of(kPost, limits), 413);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: " + std::string(300, 'a') + "\r\n\r\n", limits),
            431);
  EXPECT_EQ(status_of("hello\r\n\r\n", limits), 400);
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", limits), 400);
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n" +
                          std::string(300, 'x'),
                      limits),
            413);
}

TEST(RequestReader, RefusesBodiesWhoseCodingItDoesNotKnow) {
  const auto post = [](const std::string& headers) {
    return status_of("POST / HTTP/1.1\r\n" + headers + "\r\n\r\n{}", {});
  };
  EXPECT_EQ(post("Transfer-Encoding: gzip"), 400);
  EXPECT_EQ(post("Transfer-Encoding: gzip, chunked"), 400);
  EXPECT_EQ(post("Content-Length: 2\r\nContent-Encoding: gzip"), 415);
  EXPECT_EQ(post("Content-Length: 2\r\nContent-Encoding: identity"), 0);
}

TEST(RequestReader, ATargetMayNameItsHost) {
  const auto path_of = [](const std::string& target) {
    RequestReader reader({});
    feed(reader, "GET " + target + " HTTP/1.1\r\n\r\n", 4096);
    return reader.head().path;
  };
  EXPECT_EQ(path_of("http://here:80/health?a=b"), "/health");
  EXPECT_EQ(path_of("http://here"), "/");
  EXPECT_EQ(path_of("/a?b=c://d/e"), "/a");
  EXPECT_EQ(path_of("*"), "*");
}

TEST(RequestReader, KeepsAnIdOnlyIfItCanStandInALog) {
  const auto id_of = [](const std::string& id) {
    RequestReader reader({});
    feed(reader, "GET / HTTP/1.1\r\nX-Request-Id: " + id + "\r\n\r\n", 4096);
    return reader.head().request_id;
  };
  EXPECT_EQ(id_of("abc-1_2.3"), "abc-1_2.3");
  EXPECT_NE(id_of("a b"), "a b");
  EXPECT_NE(id_of(std::string(65, 'a')), std::string(65, 'a'));
  EXPECT_NE(id_of(""), id_of(""));
}

}  // namespace
}  // namespace glimpse
