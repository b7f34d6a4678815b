// Every picture of golden/preprocess: the grid, and the SHA-256 of the resized pixels that
// transformers makes of it, or its error.
#include <algorithm>
#include <cstdio>  // jpeglib.h needs FILE
#include <cstdlib>
#include <string>

#include <jpeglib.h>
#include <webp/decode.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "base/mapped_file.h"
#include "glimpse/error.h"
#include "image/decode.h"
#include "image/image_processor.h"
#include "picture_files.h"

namespace glimpse {
namespace {

using testing::golden_dir;
using testing::golden_picture_path;
using testing::shared_dir;

Json expectations() {
  return read_json_file(golden_dir() / "preprocess" / "expected.json");
}

std::vector<std::string> file_names() {
  std::vector<std::string> names;
  const Json document = expectations();
  for (const Json& entry : document["files"]) names.push_back(entry["file"]);
  return names;
}

Json expectation_of(const std::string& name) {
  const Json document = expectations();
  for (const Json& entry : document["files"]) {
    if (entry["file"] == name) return entry;
  }
  return {};
}

RgbImage decode_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return decode_picture(file.bytes(), path.filename().string());
}

// Lossy formats are not defined to the bit: the goldens hold for the versions that Debian 12 has.
bool is_reference_decoder(const std::string& name) {
  if (name.ends_with(".jpg")) return LIBJPEG_TURBO_VERSION_NUMBER == 2001005;
  if (name.ends_with(".webp")) return WebPGetDecoderVersion() == 0x010204;
  return true;
}

void expect_close(const RgbImage& actual, const RgbImage& expected) {
  ASSERT_EQ(actual.width, expected.width);
  ASSERT_EQ(actual.height, expected.height);
  int largest = 0;
  for (size_t i = 0; i < actual.pixels.size(); ++i) {
    largest = std::max(largest, std::abs(actual.pixels[i] - expected.pixels[i]));
  }
  EXPECT_LE(largest, 2) << "levels of difference allowed to another version of the decoder";
}

class GoldenPicture : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenPicture, IsPreparedAsTransformersDoesIt) {
  const std::string name = GetParam();
  const std::filesystem::path path = golden_picture_path(name);
  GLIMPSE_REQUIRE_FILE(path);
  const Json expected = expectation_of(name);
  const RgbImage picture = decode_file(path);
  ImageProcessorConfig config;
  config.min_pixels = expectations()["size"]["shortest_edge"];
  config.max_pixels = expectations()["size"]["longest_edge"];
  const PictureSize original{.height = picture.height, .width = picture.width};
  if (expected.contains("error")) {
    try {
      (void)smart_resize(original, config);
      FAIL() << "no error, expected: " << expected["error"];
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_picture);
      EXPECT_THAT(error.what(), ::testing::HasSubstr(expected["error"].get<std::string>()));
    }
    return;
  }

  const ProcessedPicture processed = ImageProcessor(config).process(picture);
  const PatchGrid& grid = processed.grid;
  EXPECT_EQ(Json::array({grid.t, grid.h, grid.w}), expected["grid_thw"]);
  EXPECT_EQ(grid.num_patches() / 4, expected["tokens"].get<int64_t>());
  const std::string digest = to_hex(sha256(std::as_bytes(std::span(processed.pixels))));
  if (digest == expected["sha256_of_resized_rgb"]) return;
  if (is_reference_decoder(name)) {
    FAIL() << "SHA-256 " << digest << ", expected " << expected["sha256_of_resized_rgb"];
  }
  const auto pixels = shared_dir() / "golden" / "preprocess" / "resized" / (name + ".png");
  GLIMPSE_REQUIRE_FILE(pixels);
  expect_close({.width = processed.resized.width,
                .height = processed.resized.height,
                .pixels = processed.pixels},
               decode_file(pixels));
}

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Files, GoldenPicture, ::testing::ValuesIn(file_names()), test_name);

}  // namespace
}  // namespace glimpse
