// What the goldens do not show: odd layouts of each format, and every kind of refusal. Expected
// pixels are written by hand or follow from the format's definition.
#include <algorithm>
#include <cstdlib>
#include <new>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "glimpse/error.h"
#include "image/decode.h"
#include "picture_files.h"

namespace {
// The largest block that C++ code asked for since the last reset.
size_t largest_allocation = 0;
}  // namespace

// Not inlined: GCC 12 would see free() beside new and call it a mismatch.
[[gnu::noinline]] void* operator new(size_t size) {
  largest_allocation = std::max(largest_allocation, size);
  if (void* block = std::malloc(size)) return block;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* block) noexcept {
  std::free(block);
}
[[gnu::noinline]] void operator delete(void* block, size_t) noexcept {
  std::free(block);
}

namespace glimpse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace glimpse::testing;

Error error_of(std::string_view file, const DecodeLimits& limits = {}) {
  try {
    (void)decode_text(file, limits);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(ErrorCode::internal, "none");
}

void expect_refused(const std::string& file, std::string_view part) {
  const Error error = error_of(file);
  EXPECT_EQ(error.code(), ErrorCode::bad_picture);
  EXPECT_THAT(error.what(), HasSubstr(std::string(part)));
  EXPECT_FALSE(error.hint().empty());
}

const char* const kOneOfEachFormat[] = {
    "baseline.jpg", "progressive.jpg", "cmyk.jpg", "rgb.png", "palette.png",
    "lossy.webp",   "lossless.webp",   "anim.gif", "bmp.bmp", "tiff.tiff"};

TEST(DecodePicture, RefusesAnEmptyFile) {
  expect_refused("", "is empty (0 bytes)");
}

TEST(DecodePicture, RefusesWhatIsNoPicture) {
  expect_refused("#!/bin/sh\necho hello\n", "not a picture");
  expect_refused("B", "not a picture");
  expect_refused("RIFF\x10\0\0\0WAVE", "not a picture");
}

TEST(DecodePicture, NamesATruncatedFile) {
  for (const char* name : kOneOfEachFormat) {
    SCOPED_TRACE(name);
    const std::string whole = golden_picture(name);
    expect_refused(whole.substr(0, whole.size() / 2), "truncated");
  }
}

TEST(DecodePicture, SurvivesACutAnywhereInTheHeader) {
  for (const char* name : kOneOfEachFormat) {
    SCOPED_TRACE(name);
    const std::string whole = golden_picture(name);
    for (size_t length = 1; length < 120; ++length) {
      EXPECT_THROW((void)decode_text(whole.substr(0, length)), Error) << length;
    }
  }
}

TEST(DecodePicture, ChecksTheLimitBeforeItAllocatesPixels) {
  for (const char* name : kOneOfEachFormat) {
    SCOPED_TRACE(name);
    const std::string file = golden_picture(name);
    largest_allocation = 0;
    const Error error = error_of(file, {.max_pixels = 1000});
    EXPECT_LT(largest_allocation, 20000U) << "the pixels alone take more than 150,000 bytes";
    EXPECT_EQ(error.code(), ErrorCode::bad_picture);
    EXPECT_THAT(error.what(), HasSubstr("the limit is 1000 pixels"));
  }
}

TEST(DecodePicture, RefusesADeclaredSizeFarBeyondTheFile) {
  std::string jpeg = golden_picture("baseline.jpg");
  const size_t frame = jpeg.find("\xFF\xC0");
  ASSERT_NE(frame, std::string::npos);
  jpeg.replace(frame + 5, 4, "\xEA\x60\xEA\x60");
  expect_refused(jpeg, "60000 x 60000 pixels, the limit is 268435456");
  jpeg.replace(frame + 5, 4, std::string("\x3F\xFF\x3F\xFF", 4));
  expect_refused(jpeg, "takes at least");

  expect_refused(make_bmp({.width = 1 << 30, .height = 1 << 30, .bits = 24}), "the limit is");
  expect_refused(make_bmp({.width = 16000, .height = 16000, .bits = 24}), "truncated");
  expect_refused(make_gif(65535, 65535, {0, 0, 1, 1}, -1), "the limit is");
}

TEST(DecodePicture, RefusesAPictureWithoutPixels) {
  expect_refused(make_bmp({.width = 0, .height = 7, .bits = 24}), "0 x 7");
  std::string jpeg = golden_picture("baseline.jpg");
  jpeg.replace(jpeg.find("\xFF\xC0") + 7, 2, std::string(2, '\0'));
  EXPECT_THROW((void)decode_text(jpeg), Error);
}

TEST(DecodeJpeg, RefusesAFileWithoutItsEnd) {
  const std::string whole = golden_picture("baseline.jpg");
  expect_refused(whole.substr(0, whole.size() - 40), "truncated");
}

TEST(DecodePng, RefusesDamagedPixels) {
  std::string file = golden_picture("rgb.png");
  file[file.size() / 2] = static_cast<char>(file[file.size() / 2] ^ 0x55);
  expect_refused(file, "damaged");
}

TEST(DecodeBmp, ReadsSixteenBitsWithTheDefaultMasks) {
  std::string pixels;
  put_little(pixels, 0x7C00, 2);
  put_little(pixels, 1U << 5 | 30U, 2);
  const RgbImage image =
      decode_text(make_bmp({.width = 2, .height = 1, .bits = 16, .pixels = pixels}));
  EXPECT_THAT(image.pixels, ElementsAre(255, 0, 0, 0, 8, 246));
}

TEST(DecodeBmp, ReadsBitFieldsOfAnyOrder) {
  std::string masks;
  put_little(masks, 0xFF000000, 4);
  put_little(masks, 0x00FF0000, 4);
  put_little(masks, 0x0000FF00, 4);
  const RgbImage image = decode_text(make_bmp({.width = 1,
                                               .height = 1,
                                               .bits = 32,
                                               .compression = 3,
                                               .masks_or_palette = masks,
                                               .pixels = "\x04\x03\x02\x01"}));
  EXPECT_THAT(image.pixels, ElementsAre(1, 2, 3));
}

TEST(DecodeBmp, ReadsPaletteBitsFromTheTopOfEachByte) {
  const std::string palette("\x03\x02\x01\0\x13\x12\x11\0", 8);
  const RgbImage image = decode_text(make_bmp({.width = 3,
                                               .height = 1,
                                               .bits = 1,
                                               .masks_or_palette = palette,
                                               .pixels = std::string("\x40\0\0\0", 4)}));
  EXPECT_THAT(image.pixels, ElementsAre(1, 2, 3, 0x11, 0x12, 0x13, 1, 2, 3));
}

TEST(DecodeBmp, ShowsUndefinedPaletteEntriesAsBlack) {
  const RgbImage image = decode_text(make_bmp({.width = 2,
                                               .height = 1,
                                               .bits = 4,
                                               .masks_or_palette = std::string("\x09\x08\x07\0", 4),
                                               .pixels = std::string("\x0F\0\0\0", 4)}));
  EXPECT_THAT(image.pixels, ElementsAre(7, 8, 9, 0, 0, 0));
}

TEST(DecodeBmp, PutsTheFirstRowLastUnlessTheHeightIsNegative) {
  const std::string pixels = std::string("\x01\x01\x01\0\x02\x02\x02\0", 8);
  EXPECT_EQ(decode_text(make_bmp({.width = 1, .height = 2, .bits = 24, .pixels = pixels})).pixels,
            std::vector<uint8_t>({2, 2, 2, 1, 1, 1}));
  EXPECT_EQ(decode_text(make_bmp({.width = 1, .height = -2, .bits = 24, .pixels = pixels})).pixels,
            std::vector<uint8_t>({1, 1, 1, 2, 2, 2}));
}

TEST(DecodeBmp, RefusesRunLengthCodingAsUnsupported) {
  const Error error = error_of(make_bmp({.width = 2, .height = 2, .bits = 8, .compression = 1}));
  EXPECT_EQ(error.code(), ErrorCode::unsupported);
  EXPECT_THAT(error.what(), HasSubstr("run-length"));
}

TEST(DecodeBmp, RefusesDepthsMasksAndHeadersThatDoNotExist) {
  expect_refused(make_bmp({.width = 2, .height = 2, .bits = 7}), "7 bits a pixel");
  std::string file = make_bmp({.width = 2, .height = 2, .bits = 24});
  file[14] = 33;
  expect_refused(file, "a header of 33 bytes");
  std::string masks;
  put_little(masks, 0xF0F0, 4);
  put_little(masks, 0x0F00, 4);
  put_little(masks, 0x000F, 4);
  expect_refused(
      make_bmp({.width = 1, .height = 1, .bits = 16, .compression = 3, .masks_or_palette = masks}),
      "colour mask 0xf0f0");
}

TEST(DecodeGif, PutsTheFrameOnACanvasOfTheTransparentColor) {
  const RgbImage image = decode_text(make_gif(3, 1, {1, 0, 1, 1}, 0));
  EXPECT_THAT(image.pixels, ElementsAre(10, 20, 30, 200, 100, 50, 10, 20, 30));
}

TEST(DecodeGif, EnlargesTheCanvasForAFrameThatReachesBeyondIt) {
  const RgbImage image = decode_text(make_gif(1, 1, {1, 1, 1, 1}, -1));
  EXPECT_EQ(image.width, 2);
  EXPECT_EQ(image.height, 2);
  EXPECT_THAT(image.pixels, ElementsAre(10, 20, 30, 10, 20, 30, 10, 20, 30, 200, 100, 50));
}

TEST(DecodeGif, RefusesAFileWithoutAFrame) {
  std::string file = make_gif(1, 1, {0, 0, 1, 1}, -1);
  file.resize(file.find(','));
  expect_refused(file + ";", "no frame");
}

}  // namespace
}  // namespace glimpse
