#include "image/orientation.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

namespace glimpse {
namespace {

constexpr uint16_t kOrientationTag = 0x0112;
using std::string_view_literals::operator""sv;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Reads integers of a TIFF block in its byte order; nothing outside the block is touched.
class TiffReader {
 public:
  TiffReader(std::string_view block, bool big_endian) : block_(block), big_endian_(big_endian) {}

  [[nodiscard]] std::optional<uint32_t> read(size_t offset, size_t width) const {
    if (offset > block_.size() || block_.size() - offset < width) return std::nullopt;
    uint32_t value = 0;
    for (size_t i = 0; i < width; ++i) {
      const size_t at = big_endian_ ? offset + i : offset + width - 1 - i;
      value = value << 8 | static_cast<uint8_t>(block_[at]);
    }
    return value;
  }

 private:
  std::string_view block_;
  bool big_endian_;
};

// The value of one 12-byte directory entry, if it is an unsigned integer.
int entry_value(const TiffReader& reader, size_t entry) {
  const auto type = reader.read(entry + 2, 2);
  const size_t width = type == 1U ? 1 : type == 3U ? 2 : type == 4U ? 4 : 0;
  const auto value = width == 0 ? std::nullopt : reader.read(entry + 8, width);
  return value && *value <= 8 ? static_cast<int>(*value) : 0;
}

}  // namespace

int exif_orientation(std::span<const std::byte> exif) {
  std::string_view block = as_text(exif);
  while (block.starts_with("Exif\0\0"sv)) block.remove_prefix(6);
  const bool big_endian = block.starts_with("MM\0*"sv);
  if (!big_endian && !block.starts_with("II*\0"sv)) return 0;
  const TiffReader reader(block, big_endian);
  const auto directory = reader.read(4, 4);
  const auto entries = directory ? reader.read(*directory, 2) : std::nullopt;
  for (size_t i = 0; i < entries.value_or(0); ++i) {
    const size_t entry = size_t{*directory} + 2 + 12 * i;
    const auto tag = reader.read(entry, 2);
    if (!tag) return 0;
    if (*tag == kOrientationTag) return entry_value(reader, entry);
  }
  return 0;
}

int xmp_orientation(std::span<const std::byte> xmp) {
  const std::string_view text = as_text(xmp);
  constexpr std::string_view kKey = "tiff:Orientation";
  for (size_t at = text.find(kKey); at != text.npos; at = text.find(kKey, at + 1)) {
    std::string_view rest = text.substr(at + kKey.size());
    if (rest.starts_with("=\"")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with(">")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return 0;
}

int orientation(std::span<const std::byte> exif, std::span<const std::byte> xmp) {
  const int from_exif = exif_orientation(exif);
  if (from_exif != 0) return from_exif;
  const int from_xmp = xmp_orientation(xmp);
  return from_xmp != 0 ? from_xmp : 1;
}

RgbImage make_upright(RgbImage image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  // The source pixel of upright (x, y) is origin + x * step_x + y * step_y, counted in pixels.
  const int64_t width = image.width;
  const int64_t height = image.height;
  const bool transposed = orientation >= 5;
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const int64_t along_row = from_right ? -1 : 1;
  const int64_t along_column = from_bottom ? -width : width;
  const int64_t step_x = transposed ? along_column : along_row;
  const int64_t step_y = transposed ? along_row : along_column;
  const int64_t origin = (from_right ? width - 1 : 0) + (from_bottom ? (height - 1) * width : 0);

  RgbImage upright;
  upright.width = transposed ? image.height : image.width;
  upright.height = transposed ? image.width : image.height;
  upright.pixels.resize(image.pixels.size());
  // Tiles of 16 x 16 pixels: a transposition walks one side across rows, and a tile's lines stay in
  // the first-level cache until all of their pixels are used.
  constexpr int kTile = 16;
  for (int tile_y = 0; tile_y < upright.height; tile_y += kTile) {
    for (int tile_x = 0; tile_x < upright.width; tile_x += kTile) {
      const int end_y = std::min(tile_y + kTile, upright.height);
      const int end_x = std::min(tile_x + kTile, upright.width);
      for (int y = tile_y; y < end_y; ++y) {
        uint8_t* target = &upright.pixels[(static_cast<size_t>(y) * upright.width + tile_x) * 3];
        for (int x = tile_x; x < end_x; ++x, target += 3) {
          std::copy_n(&image.pixels[(origin + x * step_x + y * step_y) * 3], 3, target);
        }
      }
    }
  }
  return upright;
}

}  // namespace glimpse
