#include "base/data_url.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "glimpse/error.h"

namespace glimpse {
namespace {

std::string text_of(std::string_view url) {
  const auto bytes = decode_data_url(url);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void expect_refused(std::string_view url, const std::string& part, size_t max_bytes = 1000) {
  try {
    (void)decode_data_url(url, {.max_bytes = max_bytes});
    ADD_FAILURE() << "no error: " << url;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument) << url;
    EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
    EXPECT_FALSE(error.hint().empty());
  }
}

TEST(DecodeDataUrl, ReadsEveryLengthOfTheLastGroup) {
  EXPECT_EQ(text_of("data:image/png;base64,YQ=="), "a");
  EXPECT_EQ(text_of("data:image/png;base64,YWI="), "ab");
  EXPECT_EQ(text_of("data:image/png;base64,YWJj"), "abc");
  EXPECT_EQ(text_of("data:image/png;base64,YWJjZA=="), "abcd");
  EXPECT_EQ(text_of("data:;base64,+/+/"), "\xFB\xFF\xBF");
}

TEST(DecodeDataUrl, IgnoresTheMediaTypeAndTheCaseOfTheScheme) {
  EXPECT_EQ(text_of("DATA:application/x-thing;charset=utf-8;Base64,YQ=="), "a");
  EXPECT_EQ(text_of("data:;base64,YQ=="), "a");
  EXPECT_TRUE(is_data_url("Data:x"));
  EXPECT_FALSE(is_data_url("http://example.com/data:"));
  EXPECT_FALSE(is_data_url("dat"));
}

TEST(DecodeDataUrl, RefusesWhatIsNotADataUrl) {
  expect_refused("", "begin with data:");
  expect_refused("file:///etc/passwd", "begin with data:");
  expect_refused("data:image/png;base64", "no comma");
  expect_refused("data:image/png,abc", "not marked ;base64");
  expect_refused("data:base64,YQ==", "not marked ;base64");
}

TEST(DecodeDataUrl, RefusesSloppyBase64) {
  expect_refused("data:;base64,", "no bytes");
  expect_refused("data:;base64,YQ", "2 characters");
  expect_refused("data:;base64,YQ=a", "character 3 of 4");
  expect_refused("data:;base64,Y===", "character 2 of 4");
  expect_refused("data:;base64,====", "character 1 of 4");
  expect_refused("data:;base64,YQ==YQ==", "character 3 of 8");
  expect_refused("data:;base64,YW J", "character 3 of 4");
  expect_refused("data:;base64,YW-_", "character 3 of 4");
  expect_refused("data:;base64,YR==", "bits behind its end");
  expect_refused("data:;base64,YWJ=", "bits behind its end");
}

TEST(DecodeDataUrl, ChecksTheSizeAgainstTheLimit) {
  EXPECT_EQ(decode_data_url("data:;base64,YWJj", {.max_bytes = 3}).size(), 3U);
  expect_refused("data:;base64,YWJjZA==", "4 bytes, the limit is 3", 3);
}

TEST(DataUrl, OfAnyLengthComesBack) {
  for (size_t size = 1; size < 70; ++size) {
    std::vector<std::byte> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 37 + size);
    EXPECT_EQ(decode_data_url(encode_data_url(bytes)), bytes) << size;
  }
}

}  // namespace
}  // namespace glimpse
