// HEIC and AVIF against the pixels that Pillow shows (golden/preprocess/heif/make.py).
#include <algorithm>
#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <libheif/heif.h>

#include "glimpse/error.h"
#include "image/decode.h"
#include "picture_files.h"

namespace glimpse {
namespace {

using namespace glimpse::testing;

std::string heif_file(std::string_view name) {
  return read_text(golden_dir() / "preprocess" / "heif" / name);
}

struct HeifCase {
  const char* name;
  int tolerance;  // levels: 0 where the codec is lossless and no colour conversion rounds
};

class HeifPicture : public ::testing::TestWithParam<HeifCase> {};

TEST_P(HeifPicture, HasPillowsPixels) {
  const std::string name = GetParam().name;
  const heif_compression_format codec =
      name.ends_with(".avif") ? heif_compression_AV1 : heif_compression_HEVC;
  if (heif_have_decoder_for_format(codec) == 0) {
    try {
      (void)decode_text(heif_file(name));
      FAIL() << "decoded without a decoder";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::unsupported);
    }
    GTEST_SKIP() << "this libheif has no decoder for " << name;
  }
  const RgbImage actual = decode_text(heif_file(name));
  const RgbImage expected = decode_text(heif_file(name + ".png"));
  ASSERT_EQ(actual.width, expected.width);
  ASSERT_EQ(actual.height, expected.height);
  int largest = 0;
  for (size_t i = 0; i < actual.pixels.size(); ++i) {
    largest = std::max(largest, std::abs(actual.pixels[i] - expected.pixels[i]));
  }
  EXPECT_LE(largest, GetParam().tolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Files, HeifPicture,
    ::testing::Values(HeifCase{"lossless.heic", 0}, HeifCase{"turned6.heic", 0},
                      HeifCase{"turned7.heic", 0}, HeifCase{"exif6_only.heic", 0},
                      HeifCase{"gray420.heic", 1}, HeifCase{"gray420.avif", 1},
                      // The conversion from YCbCr rounds each channel once, by either library.
                      HeifCase{"fine444.avif", 1}, HeifCase{"turned8.avif", 0}),
    [](const auto& parameter) {
      std::string name = parameter.param.name;
      std::replace(name.begin(), name.end(), '.', '_');
      return name;
    });

TEST(DecodeHeif, RefusesATruncatedOrDamagedFileWithASentence) {
  const std::string whole = heif_file("lossless.heic");
  for (const size_t length : {13UL, 40UL, 200UL, whole.size() / 2, whole.size() - 1}) {
    EXPECT_THROW((void)decode_text(whole.substr(0, length)), Error) << length;
  }
}

TEST(DecodeHeif, ChecksTheLimitFirst) {
  try {
    (void)decode_text(heif_file("lossless.heic"), {.max_pixels = 1000});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_picture);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("72 x 56 pixels, the limit is 1000"));
  }
}

}  // namespace
}  // namespace glimpse
