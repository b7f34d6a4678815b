#include "image/image_processor.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include "base/json.h"
#include "glimpse/error.h"
#include "paths.h"

namespace glimpse {
namespace {

RgbImage random_picture(int width, int height, uint32_t seed) {
  std::mt19937 random(seed);
  RgbImage image{.width = width, .height = height, .pixels = {}};
  image.pixels.resize(static_cast<size_t>(width) * height * 3);
  for (uint8_t& value : image.pixels) value = static_cast<uint8_t>(random());
  return image;
}

TEST(SmartResize, GivesTheSizesThatTransformersGives) {
  struct Case {
    PictureSize original;
    PictureSize expected;
  };
  const Case cases[] = {
      {{1365, 2048}, {1376, 2048}}, {{480, 640}, {480, 640}},   {{224, 224}, {256, 256}},
      {{336, 336}, {320, 320}},     {{720, 1280}, {704, 1280}}, {{1080, 1920}, {1088, 1920}},
      {{6000, 8000}, {3520, 4704}}, {{10, 1900}, {32, 3552}},   {{16, 3200}, {32, 3648}},
      {{1, 1}, {256, 256}},         {{48, 80}, {224, 352}},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(smart_resize(c.original, {}), c.expected)
        << c.original.height << " x " << c.original.width;
  }
}

TEST(SmartResize, KeepsTheAreaWithinTheLimitsAndTheSidesMultiples) {
  ImageProcessorConfig config;
  config.max_pixels = 147456;
  for (int height = 1; height < 3000; height += 97) {
    for (int width = 1; width < 3000; width += 89) {
      if (std::max(height, width) > 200 * std::min(height, width)) continue;
      const PictureSize size = smart_resize({.height = height, .width = width}, config);
      EXPECT_EQ(size.height % 32, 0);
      EXPECT_EQ(size.width % 32, 0);
      EXPECT_GE(int64_t{size.height} * size.width, config.min_pixels);
      // The shorter side never falls below one step, whatever that does to the area.
      if (std::min(size.height, size.width) > 32) {
        EXPECT_LE(int64_t{size.height} * size.width, config.max_pixels);
      }
    }
  }
}

TEST(SmartResize, RefusesAnAspectRatioAboveTwoHundred) {
  EXPECT_NO_THROW((void)smart_resize({.height = 10, .width = 2000}, {}));
  try {
    (void)smart_resize({.height = 2001, .width = 10}, {});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_picture);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("smaller than 200, got 200.1"));
  }
}

TEST(ResizeBicubic, LeavesAFlatPictureFlat) {
  const RgbImage flat{
      .width = 37, .height = 23, .pixels = std::vector<uint8_t>(size_t{37} * 23 * 3, 201)};
  for (const PictureSize size : {PictureSize{64, 96}, PictureSize{7, 5}, PictureSize{23, 1}}) {
    for (const uint8_t value : resize_bicubic(flat, size).pixels) ASSERT_EQ(value, 201);
  }
}

TEST(ResizeBicubic, ReturnsTheSamePixelsForTheSameSize) {
  const RgbImage image = random_picture(19, 11, 1);
  EXPECT_EQ(resize_bicubic(image, {.height = 11, .width = 19}).pixels, image.pixels);
}

// Straight from the definition, one sample at a time: the fast code's oracle.
RgbImage resize_slowly(const RgbImage& image, int width) {
  RgbImage out{.width = width, .height = image.height, .pixels = {}};
  out.pixels.resize(static_cast<size_t>(width) * image.height * 3);
  const double scale = static_cast<double>(image.width) / width;
  const double stretch = std::max(scale, 1.0);
  const auto cubic = [](double x) {
    x = std::abs(x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    return x < 2.0 ? ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 : 0.0;
  };
  std::vector<std::vector<double>> weights(width);
  std::vector<int> first(width);
  double largest = 0.0;
  for (int x = 0; x < width; ++x) {
    const double center = scale * (x + 0.5);
    first[x] = std::max(0, static_cast<int>(center - 2.0 * stretch + 0.5));
    const int last = std::min(image.width, static_cast<int>(center + 2.0 * stretch + 0.5));
    double total = 0.0;
    for (int i = first[x]; i < last; ++i) {
      weights[x].push_back(cubic((i - center + 0.5) / stretch));
      total += weights[x].back();
    }
    for (double& weight : weights[x]) largest = std::max(largest, weight /= total);
  }
  int precision = 0;
  while (precision < 22 && static_cast<int>(0.5 + largest * (2 << precision)) < 32768) ++precision;
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int channel = 0; channel < 3; ++channel) {
        int64_t sum = int64_t{1} << (precision - 1);
        for (size_t i = 0; i < weights[x].size(); ++i) {
          const size_t at = (static_cast<size_t>(y) * image.width + first[x] + i) * 3 + channel;
          sum += std::llround(weights[x][i] * (1 << precision)) * image.pixels[at];
        }
        out.pixels[(static_cast<size_t>(y) * width + x) * 3 + channel] =
            static_cast<uint8_t>(std::clamp<int64_t>(sum >> precision, 0, 255));
      }
    }
  }
  return out;
}

RgbImage transposed(const RgbImage& image) {
  RgbImage out{.width = image.height, .height = image.width, .pixels = image.pixels};
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      for (int channel = 0; channel < 3; ++channel) {
        out.pixels[(static_cast<size_t>(x) * image.height + y) * 3 + channel] =
            image.pixels[(static_cast<size_t>(y) * image.width + x) * 3 + channel];
      }
    }
  }
  return out;
}

void expect_plain_definition() {
  uint32_t seed = 7;
  for (const int from : {1, 2, 3, 17, 64, 111, 300}) {
    for (const int to : {1, 2, 5, 32, 63, 111, 250}) {
      SCOPED_TRACE(::testing::Message() << from << " to " << to << ", seed " << seed);
      const RgbImage image = random_picture(from, 33, seed++);
      const RgbImage expected = resize_slowly(image, to);
      EXPECT_EQ(resize_bicubic(image, {.height = 33, .width = to}).pixels, expected.pixels);
      const RgbImage columns = resize_bicubic(transposed(image), {.height = to, .width = 33});
      EXPECT_EQ(columns.pixels, transposed(expected).pixels);
    }
  }
}

TEST(ResizeBicubic, EqualsThePlainDefinitionWithEveryInstructionSet) {
  const int64_t supported = hwy::SupportedTargets();
  for (int bit = 0; bit < 63; ++bit) {
    const int64_t target = int64_t{1} << bit;
    if ((HWY_TARGETS & supported & target) == 0) continue;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    expect_plain_definition();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(ResizeBicubic, TakesRowsBeforeColumns) {
  const RgbImage image = random_picture(50, 41, 3);
  const RgbImage rows_first = transposed(resize_slowly(transposed(resize_slowly(image, 31)), 67));
  EXPECT_EQ(resize_bicubic(image, {.height = 67, .width = 31}).pixels, rows_first.pixels);
}

TEST(ResizeBicubic, GivesTheSameBytesWithHelpers) {
  WorkerPool helpers(3);
  const RgbImage image = random_picture(301, 203, 13);
  for (const PictureSize size :
       {PictureSize{97, 150}, PictureSize{203, 64}, PictureSize{400, 301}}) {
    EXPECT_EQ(resize_bicubic(image, size, &helpers).pixels, resize_bicubic(image, size).pixels);
  }
}

TEST(PixelTable, RescalesAndNormalisesEveryByte) {
  ImageProcessorConfig config;
  const PixelTable usual = make_pixel_table(config);
  for (size_t i = 0; i < usual.size(); ++i) {
    EXPECT_EQ(usual[i], (static_cast<float>(i % 256) - 127.5F) / 127.5F);
  }
  config.image_mean[1] = 0.25F;
  config.image_std[2] = 2.0F;
  const PixelTable own = make_pixel_table(config);
  EXPECT_EQ(own[255], 1.0F);
  EXPECT_EQ(own[256 + 255], (255.0F - 63.75F) / 127.5F);
  EXPECT_EQ(own[2 * 256], -127.5F / 510.0F);
}

TEST(ImageProcessor, GivesTheResizedPixels) {
  ImageProcessorConfig config;
  config.min_pixels = 1;
  const RgbImage image = random_picture(101, 67, 5);
  const ProcessedPicture picture = ImageProcessor(config).process(image);
  EXPECT_EQ(picture.grid, (PatchGrid{.t = 1, .h = 4, .w = 6}));
  EXPECT_EQ(picture.pixels, resize_bicubic(image, {.height = 64, .width = 96}).pixels);
}

TEST(ImageProcessor, HashesThePixelsAndTheShape) {
  const ImageProcessor processor{ImageProcessorConfig{}};
  const RgbImage image = random_picture(256, 512, 9);
  RgbImage other_pixel = image;
  other_pixel.pixels[1000] ^= 1;
  RgbImage other_shape = image;
  std::swap(other_shape.width, other_shape.height);
  EXPECT_EQ(processor.process(image).content_hash, processor.process(image).content_hash);
  EXPECT_NE(processor.process(image).content_hash, processor.process(other_pixel).content_hash);
  EXPECT_NE(processor.process(image).content_hash, processor.process(other_shape).content_hash);
}

TEST(ImageProcessor, HashesEveryPieceOfALargePictureInItsPlace) {
  const ImageProcessor processor{ImageProcessorConfig{}};
  const RgbImage image = random_picture(1024, 768, 21);
  const Sha256 hash = processor.process(image).content_hash;
  WorkerPool helpers(3);
  EXPECT_EQ(processor.process(image, 0, 0, &helpers).content_hash, hash);
  constexpr size_t kPiece = 128 << 10;
  for (size_t byte : {size_t{0}, kPiece - 1, kPiece, 9 * kPiece, image.pixels.size() - 1}) {
    RgbImage other = image;
    other.pixels[byte] ^= 1;
    EXPECT_NE(processor.process(other).content_hash, hash) << "byte " << byte;
  }
  RgbImage swapped = image;  // two pieces change places
  std::swap_ranges(swapped.pixels.begin(), swapped.pixels.begin() + kPiece,
                   swapped.pixels.begin() + kPiece);
  EXPECT_NE(processor.process(swapped).content_hash, hash);
}

TEST(ImageProcessor, TakesAnAreaForOneCall) {
  const ImageProcessor processor{ImageProcessorConfig{}};
  const RgbImage image = random_picture(640, 480, 11);
  EXPECT_EQ(processor.process(image).resized, (PictureSize{.height = 480, .width = 640}));
  EXPECT_EQ(processor.process(image, 0, 100000).resized,
            (PictureSize{.height = 256, .width = 352}));
  EXPECT_EQ(processor.process(image, 500000).resized, (PictureSize{.height = 640, .width = 832}));
  EXPECT_THROW((void)processor.process(image, 200, 100), Error);
  EXPECT_THROW((void)processor.process(image, -5), Error);
}

ImageProcessorConfig config_of(std::string_view text) {
  return ImageProcessorConfig::from_json(parse_json(text, "test"));
}

TEST(ImageProcessorConfig, ReadsBothLayoutsOfTheSize) {
  const auto newer = config_of(R"({"size": {"shortest_edge": 4096, "longest_edge": 8192}})");
  EXPECT_EQ(newer.min_pixels, 4096);
  EXPECT_EQ(newer.max_pixels, 8192);
  const auto older = config_of(R"({"min_pixels": 100, "max_pixels": 200, "patch_size": 14})");
  EXPECT_EQ(older.min_pixels, 100);
  EXPECT_EQ(older.max_pixels, 200);
  EXPECT_EQ(older.patch_size, 14);
  EXPECT_EQ(config_of("{}").max_pixels, 16777216);
  EXPECT_EQ(config_of(R"({"min_pixels": null})").min_pixels, 65536);
}

TEST(ImageProcessorConfig, RefusesValuesThatCannotBeUsed) {
  for (const char* text :
       {"[]", R"({"patch_size": 0})", R"({"patch_size": "16"})", R"({"merge_size": 2.5})",
        R"({"patch_size": 18446744073709551615})", R"({"min_pixels": -1})", R"({"size": 224})",
        R"({"min_pixels": 300, "max_pixels": 200})", R"({"image_mean": [0.5]})",
        R"({"image_mean": [0.5, 0.5, "a"]})", R"({"image_std": [0.5, 0.0, 0.5]})",
        R"({"rescale_factor": 0})", R"({"rescale_factor": 1e999})"}) {
    try {
      (void)config_of(text);
      ADD_FAILURE() << "no error: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_model) << text;
    }
  }
  for (const char* text : {R"({"resample": 2})", R"({"do_resize": false})"}) {
    try {
      (void)config_of(text);
      ADD_FAILURE() << "no error: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::unsupported) << text;
    }
  }
}

class ConfigDirectory : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(::testing::TempDir()) / "glimpse_processor_config";
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  void write(const char* name, std::string_view text) const {
    std::ofstream(directory_ / name) << text;
  }
  [[nodiscard]] ImageProcessorConfig read() const {
    return ImageProcessorConfig::from_directory(directory_);
  }

 private:
  std::filesystem::path directory_;
};

TEST_F(ConfigDirectory, WithoutFilesGivesTheDefaults) {
  EXPECT_EQ(read().patch_size, 16);
}

TEST_F(ConfigDirectory, PrefersTheSectionOfTheProcessorConfig) {
  write("preprocessor_config.json", R"({"min_pixels": 111})");
  EXPECT_EQ(read().min_pixels, 111);
  write("processor_config.json", R"({"processor_class": "Qwen3VLProcessor"})");
  EXPECT_EQ(read().min_pixels, 111);
  write("processor_config.json", R"({"image_processor": {"min_pixels": 222}})");
  EXPECT_EQ(read().min_pixels, 222);
}

TEST(ImageProcessorConfigOfTheDemo, HasItsSmallPictures) {
  const auto config = ImageProcessorConfig::from_directory(testing::demo_model_dir());
  EXPECT_EQ(config.min_pixels, 65536);
  EXPECT_EQ(config.max_pixels, 147456);
}

}  // namespace
}  // namespace glimpse
