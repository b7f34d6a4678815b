#include "image/orientation.h"

#include <string>

#include <gtest/gtest.h>

#include "picture_files.h"

namespace glimpse {
namespace {

using std::string_literals::operator""s;
using testing::put_big;
using testing::put_little;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// 3 x 2 pixels whose red channel counts 0..5.
RgbImage counted() {
  RgbImage image{.width = 3, .height = 2, .pixels = std::vector<uint8_t>(18)};
  for (uint8_t i = 0; i < 6; ++i) image.pixels[i * size_t{3}] = i;
  return image;
}

std::vector<int> reds(const RgbImage& image) {
  std::vector<int> values;
  for (size_t i = 0; i < image.pixels.size(); i += 3) values.push_back(image.pixels[i]);
  return values;
}

TEST(MakeUpright, MirrorsAndTurnsAsExifDefinesIt) {
  const std::vector<int> expected[] = {{0, 1, 2, 3, 4, 5}, {2, 1, 0, 5, 4, 3}, {5, 4, 3, 2, 1, 0},
                                       {3, 4, 5, 0, 1, 2}, {0, 3, 1, 4, 2, 5}, {3, 0, 4, 1, 5, 2},
                                       {5, 2, 4, 1, 3, 0}, {2, 5, 1, 4, 0, 3}};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    SCOPED_TRACE(orientation);
    const RgbImage image = make_upright(counted(), orientation);
    EXPECT_EQ(image.width, orientation < 5 ? 3 : 2);
    EXPECT_EQ(image.height, orientation < 5 ? 2 : 3);
    EXPECT_EQ(reds(image), expected[orientation - 1]);
  }
}

TEST(MakeUpright, IgnoresValuesThatExifDoesNotDefine) {
  for (const int orientation : {-1, 0, 9, 1000}) {
    EXPECT_EQ(reds(make_upright(counted(), orientation)), reds(counted())) << orientation;
  }
}

std::string little_exif(int type, uint32_t value) {
  std::string block = "II*\0"s;
  put_little(block, 8, 4);
  put_little(block, 2, 2);
  put_little(block, 0x010F, 2);  // an entry before it
  put_little(block, 2, 2);
  put_little(block, 1, 4);
  put_little(block, 'x', 4);
  put_little(block, 0x0112, 2);
  put_little(block, type, 2);
  put_little(block, 1, 4);
  put_little(block, value, 4);
  return block;
}

TEST(ExifOrientation, IsReadInBothByteOrders) {
  EXPECT_EQ(exif_orientation(bytes_of(little_exif(3, 6))), 6);
  std::string big = "Exif\0\0MM\0*"s;
  put_big(big, 8, 4);
  put_big(big, 1, 2);
  put_big(big, 0x0112, 2);
  put_big(big, 3, 2);
  put_big(big, 1, 4);
  put_big(big, 8, 2);
  put_big(big, 0, 2);
  EXPECT_EQ(exif_orientation(bytes_of(big)), 8);
}

TEST(ExifOrientation, IsZeroForDamagedBlocks) {
  EXPECT_EQ(exif_orientation({}), 0);
  EXPECT_EQ(exif_orientation(bytes_of(little_exif(2, 6))), 0) << "a text is no orientation";
  EXPECT_EQ(exif_orientation(bytes_of(little_exif(4, 70000))), 0);
  const std::string whole = little_exif(3, 6);
  for (size_t length = 0; length < whole.size() - 2; ++length) {
    const std::string cut = whole.substr(0, length);
    EXPECT_EQ(exif_orientation(bytes_of(cut)), 0) << length;
  }
}

TEST(Orientation, FallsBackToXmpAndThenToUpright) {
  const std::string xmp = "<rdf:Description tiff:Orientation=\"3\"/>";
  const std::string element = "<tiff:Orientation>5</tiff:Orientation>";
  EXPECT_EQ(orientation({}, bytes_of(xmp)), 3);
  EXPECT_EQ(orientation({}, bytes_of(element)), 5);
  EXPECT_EQ(orientation(bytes_of(little_exif(3, 6)), bytes_of(xmp)), 6);
  EXPECT_EQ(orientation({}, bytes_of("tiff:Orientation="s)), 1);
  EXPECT_EQ(orientation({}, {}), 1);
}

}  // namespace
}  // namespace glimpse
