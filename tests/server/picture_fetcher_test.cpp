// Which hosts and addresses a server may be sent to for a picture.
#include "server/picture_fetcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/chat_request.h"
#include "server/http_client.h"
#include "server/request_error.h"

namespace glimpse {
namespace {

using ::testing::HasSubstr;

bool is_public_text(const std::string& address) {
  return is_public(boost::asio::ip::make_address(address));
}

TEST(PublicAddresses, AreThoseAnybodyCanReach) {
  for (const char* address : {"1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.0",
                              "100.63.255.255", "100.128.0.1", "192.167.1.1", "223.255.255.255",
                              "2606:4700::1111", "2a00:1450:4001::200e", "::ffff:8.8.8.8"}) {
    EXPECT_TRUE(is_public_text(address)) << address;
  }
  for (const char* address : {"0.0.0.0",
                              "0.1.2.3",
                              "10.0.0.1",
                              "100.64.0.1",
                              "127.0.0.1",
                              "127.255.0.1",
                              "169.254.169.254",
                              "172.16.0.1",
                              "172.31.255.255",
                              "192.0.2.1",
                              "192.168.1.1",
                              "198.18.0.1",
                              "203.0.113.9",
                              "224.0.0.1",
                              "240.0.0.1",
                              "255.255.255.255",
                              "::",
                              "::1",
                              "fe80::1",
                              "fc00::1",
                              "fd12::1",
                              "ff02::1",
                              "::ffff:127.0.0.1",
                              "::ffff:10.0.0.1",
                              "64:ff9b::a00:1",
                              "2001::1",
                              "2001:db8::1",
                              "2002:7f00:1::",
                              "2002:a00:1::",
                              "100::1",
                              "3fff::1"}) {
    EXPECT_FALSE(is_public_text(address)) << address;
  }
}

TEST(AllowedHosts, AreNamedWholeOrByTheirDomain) {
  const FetchRules rules{.hosts = {"example.org", "*.pictures.net", "cdn.net:8443", "[::1]:9000"}};
  const auto allowed = [&](const std::string& text) {
    const HttpUrl url = parse_http_url(text);
    return is_allowed(rules, url.host, url.port, url.port == url.default_port());
  };
  for (const char* url :
       {"http://example.org/a.png", "https://EXAMPLE.org", "https://a.pictures.net/x",
        "https://a.b.pictures.net/x", "https://cdn.net:8443/", "http://[::1]:9000/"}) {
    EXPECT_TRUE(allowed(url)) << url;
  }
  for (const char* url : {"http://example.org:8080/", "https://notexample.org/",
                          "https://example.org.evil/", "https://pictures.net/",
                          "https://evilpictures.net/", "https://cdn.net/", "http://[::1]/"}) {
    EXPECT_FALSE(allowed(url)) << url;
  }
  EXPECT_FALSE(is_allowed({}, "example.org", 443, true));
  EXPECT_TRUE(is_allowed({.hosts = {"*"}}, "example.org", 443, true));
}

TEST(Urls, AreTakenApart) {
  const HttpUrl url = parse_http_url("HTTPS://Example.org:8443/a/b?c=d#e");
  EXPECT_TRUE(url.is_secure);
  EXPECT_EQ(url.host, "example.org");
  EXPECT_EQ(url.port, 8443);
  EXPECT_EQ(url.target, "/a/b?c=d");
  EXPECT_EQ(url.authority(), "example.org:8443");
  EXPECT_EQ(parse_http_url("http://a?x").target, "/?x");
  EXPECT_EQ(parse_http_url("http://[2001:db8::1]:81/").authority(), "[2001:db8::1]:81");
}

TEST(Urls, ThatAreAmbiguousAreRefused) {
  for (const char* text :
       {"ftp://a/", "a.png", "http://", "http:///a", "http://user@a/", "http://a:b@c/",
        "http://a:0/", "http://a:65536/", "http://a:8x/", "http://a b/", "http://a\r\nHost: b/",
        "http://[::1/", "http://a\\b/", "http://\xC3\xA4/"}) {
    EXPECT_THROW((void)parse_http_url(text), Error) << text;
  }
}

TEST(Urls, ARedirectionLeadsOnFromWhereItWas) {
  const HttpUrl base = parse_http_url("https://a:81/x");
  EXPECT_EQ(redirected(base, "/y?z").authority(), "a:81");
  EXPECT_EQ(redirected(base, "/y?z").target, "/y?z");
  EXPECT_EQ(redirected(base, "//b/y").host, "b");
  EXPECT_TRUE(redirected(base, "//b/y").is_secure);
  EXPECT_FALSE(redirected(base, "http://127.0.0.1/").is_secure);
  EXPECT_THROW((void)redirected(base, "file:///etc/passwd"), Error);
  EXPECT_THROW((void)redirected(base, ""), Error);
}

std::string refusal(const std::string& url, const FetchRules& rules) {
  try {
    (void)fetch_picture(url, "url", rules);
  } catch (const RequestError& error) {
    EXPECT_EQ(error.status(), 400);
    EXPECT_EQ(error.param(), "url");
    return error.what();
  }
  return "fetched";
}

TEST(FetchPicture, NeverConnectsToAPrivateAddressThatANameOrAWildcardLeadsTo) {
  EXPECT_THAT(refusal("http://localhost/x", {.hosts = {"localhost"}}),
              HasSubstr("no public address"));
  EXPECT_THAT(refusal("http://127.0.0.1/x", {.hosts = {"*"}}), HasSubstr("no public address"));
  EXPECT_THAT(refusal("http://[::ffff:127.0.0.1]/x", {.hosts = {"*"}}),
              HasSubstr("no public address"));
  // Other spellings of 127.0.0.1 that some resolvers understand.
  EXPECT_THAT(refusal("http://2130706433/x", {.hosts = {"*"}}),
              ::testing::Not(HasSubstr("fetched")));
  EXPECT_THAT(refusal("http://0x7f.1/x", {.hosts = {"*"}}), ::testing::Not(HasSubstr("fetched")));
  EXPECT_THAT(refusal("http://127.0.0.1:1/x", {.hosts = {"127.0.0.1"}}),
              HasSubstr("does not fetch"));
  EXPECT_THAT(refusal("http://127.0.0.1:1/x", {.hosts = {"127.0.0.1:1"}}),
              HasSubstr("does not answer"));
}

TEST(RemotePictures, AreNotedWithTheirPlaceWhenTheServerFetches) {
  const std::string body = R"({"messages": [{"role": "user", "content": [
    {"type": "text", "text": "a"},
    {"type": "image_url", "image_url": {"url": "https://example.org/x.png", "max_pixels": 70000}}]}]})";
  RequestRules rules;
  EXPECT_THROW((void)parse_chat_request(body, rules), RequestError);
  rules.fetches = true;
  rules.system = "Be brief.";
  const ApiRequest request = parse_chat_request(body, rules);
  ASSERT_EQ(request.remote_pictures.size(), 1U);
  const RemotePicture& remote = request.remote_pictures.front();
  EXPECT_EQ(remote.url, "https://example.org/x.png");
  EXPECT_EQ(remote.message, 1U);  // behind the system message
  EXPECT_EQ(remote.part, 1U);
  const Part& part = request.requests.front().messages[remote.message].parts[remote.part];
  ASSERT_TRUE(part.picture.has_value());
  EXPECT_EQ(part.picture->max_pixels, 70000);
}

}  // namespace
}  // namespace glimpse
