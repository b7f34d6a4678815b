// BMP, read here: Windows headers of 40 to 124 bytes and OS/2's of 12 and 64, 1 to 32 bits a pixel,
// bottom-up or top-down, with bit fields. Run-length coding is refused. Every offset is checked
// against the file before anything is read or allocated.
#include <algorithm>
#include <array>
#include <bit>

#include <fmt/format.h>

#include "image/picture_file.h"
#include "image/pixel_kernels.h"

namespace glimpse {
namespace {

enum Compression : uint32_t { kRgb = 0, kRle8 = 1, kRle4 = 2, kBitFields = 3, kAlphaBitFields = 6 };
constexpr size_t kFileHeaderBytes = 14;
constexpr size_t kCoreHeaderBytes = 12;

// Where one colour of a pixel's bits lies.
struct Channel {
  uint32_t mask = 0;
  int shift = 0;
  uint32_t largest = 0;

  Channel() = default;
  explicit Channel(uint32_t bits)
      : mask(bits), shift(bits == 0 ? 0 : std::countr_zero(bits)), largest(bits >> shift) {}
  // Scaled to 0..255, rounded down. Wider channels keep their top 8 bits.
  [[nodiscard]] uint8_t value(uint32_t pixel) const {
    if (largest == 0) return 0;
    return static_cast<uint8_t>(uint64_t{(pixel & mask) >> shift} * 255 / largest);
  }
};

struct BmpHeader {
  uint32_t header_bytes = 0;
  uint32_t pixel_offset = 0;
  int64_t width = 0;
  int64_t height = 0;
  bool top_down = false;
  uint32_t bits = 0;  // a pixel
  uint32_t compression = kRgb;
  uint32_t palette_entries = 0;
  Channel channels[3];  // red, green, blue

  [[nodiscard]] int64_t row_bytes() const { return (width * bits + 31) / 32 * 4; }
  // A byte for blue, one for green, one for red, and perhaps one for nothing.
  [[nodiscard]] bool is_bgr() const {
    return bits >= 24 && channels[0].mask == 0xFF0000 && channels[1].mask == 0x00FF00 &&
           channels[2].mask == 0x0000FF;
  }
};

uint32_t read_little(const PictureFile& file, size_t offset, int bytes) {
  if (offset + static_cast<size_t>(bytes) > file.size()) {
    throw_truncated(file, "BMP", "the header is incomplete");
  }
  uint32_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | file.data()[offset + i];
  return value;
}

void read_channels(const PictureFile& file, BmpHeader& header) {
  const bool masks = header.compression == kBitFields || header.compression == kAlphaBitFields;
  if (!masks) {
    const bool narrow = header.bits == 16;
    header.channels[0] = Channel(narrow ? 0x7C00 : 0xFF0000);
    header.channels[1] = Channel(narrow ? 0x03E0 : 0x00FF00);
    header.channels[2] = Channel(narrow ? 0x001F : 0x0000FF);
    return;
  }
  if (header.bits != 16 && header.bits != 32) {
    throw_damaged(file, "BMP", fmt::format("bit fields with {} bits a pixel", header.bits));
  }
  for (int i = 0; i < 3; ++i) {
    header.channels[i] = Channel(read_little(file, kFileHeaderBytes + 40 + 4 * i, 4));
    const uint32_t largest = header.channels[i].largest;
    if (largest == 0 || (largest & (largest + 1)) != 0) {
      throw_damaged(file, "BMP", fmt::format("colour mask {:#x}", header.channels[i].mask));
    }
  }
}

BmpHeader read_header(const PictureFile& file) {
  BmpHeader header;
  header.pixel_offset = read_little(file, 10, 4);
  header.header_bytes = read_little(file, kFileHeaderBytes, 4);
  if (header.header_bytes == kCoreHeaderBytes) {
    header.width = read_little(file, 18, 2);
    header.height = read_little(file, 20, 2);
    header.bits = read_little(file, 24, 2);
  } else if (header.header_bytes >= 40 && header.header_bytes <= 124) {
    header.width = static_cast<int32_t>(read_little(file, 18, 4));
    const int64_t height = static_cast<int32_t>(read_little(file, 22, 4));
    header.top_down = height < 0;
    header.height = std::abs(height);
    header.bits = read_little(file, 28, 2);
    header.compression = read_little(file, 30, 4);
    header.palette_entries = read_little(file, 46, 4);
  } else {
    throw_damaged(file, "BMP", fmt::format("a header of {} bytes", header.header_bytes));
  }
  if (header.compression == kRle8 || header.compression == kRle4) {
    throw_unsupported(file, "BMP", "its pixels are run-length coded");
  }
  const bool plain = header.compression == kRgb || header.compression == kBitFields ||
                     header.compression == kAlphaBitFields;
  if (!plain) throw_unsupported(file, "BMP", fmt::format("compression {}", header.compression));
  if (header.bits != 1 && header.bits != 4 && header.bits != 8 && header.bits != 16 &&
      header.bits != 24 && header.bits != 32) {
    throw_damaged(file, "BMP", fmt::format("{} bits a pixel", header.bits));
  }
  read_channels(file, header);
  return header;
}

using Palette = std::array<std::array<uint8_t, 3>, 256>;

// Entries that the file does not define are black.
Palette read_palette(const PictureFile& file, const BmpHeader& header) {
  const uint32_t addressable = 1U << header.bits;
  const uint32_t entries = header.palette_entries == 0 ? addressable : header.palette_entries;
  if (entries > 256) throw_damaged(file, "BMP", fmt::format("{} palette entries", entries));
  const int entry_bytes = header.header_bytes == kCoreHeaderBytes ? 3 : 4;
  Palette palette{};
  for (uint32_t i = 0; i < entries; ++i) {
    const size_t entry = kFileHeaderBytes + header.header_bytes + size_t{i} * entry_bytes;
    const uint32_t color = read_little(file, entry, 3);
    palette[i] = {static_cast<uint8_t>(color >> 16), static_cast<uint8_t>(color >> 8),
                  static_cast<uint8_t>(color)};
  }
  return palette;
}

void convert_indices(const uint8_t* row, const BmpHeader& header, const Palette& palette,
                     uint8_t* rgb) {
  const uint32_t mask = (1U << header.bits) - 1;
  for (int64_t x = 0; x < header.width; ++x, rgb += 3) {
    const int64_t bit = x * header.bits;
    const uint32_t index = row[bit / 8] >> (8 - header.bits - bit % 8) & mask;
    std::copy_n(palette[index].data(), 3, rgb);
  }
}

void convert_colors(const uint8_t* row, const BmpHeader& header, uint8_t* rgb) {
  const uint32_t bytes = header.bits / 8;
  for (int64_t x = 0; x < header.width; ++x, row += bytes, rgb += 3) {
    uint32_t pixel = 0;
    for (uint32_t i = 0; i < bytes; ++i) pixel |= uint32_t{row[i]} << (8 * i);
    for (int channel = 0; channel < 3; ++channel) {
      rgb[channel] = header.channels[channel].value(pixel);
    }
  }
}

}  // namespace

RgbImage decode_bmp(const PictureFile& file) {
  const BmpHeader header = read_header(file);
  check_size(file, "BMP", header.width, header.height);
  const Palette palette = header.bits <= 8 ? read_palette(file, header) : Palette{};
  const int64_t row_bytes = header.row_bytes();
  const int64_t needed = header.pixel_offset + row_bytes * header.height;
  if (needed > static_cast<int64_t>(file.size())) {
    throw_truncated(file, "BMP", fmt::format("its pixels end at byte {}", needed));
  }
  RgbImage image = allocate_picture(file, "BMP", header.width, header.height);
  for (int64_t y = 0; y < header.height; ++y) {
    const int64_t stored = header.top_down ? y : header.height - 1 - y;
    const uint8_t* row = file.data() + header.pixel_offset + stored * row_bytes;
    uint8_t* rgb = &image.pixels[static_cast<size_t>(y * header.width) * 3];
    if (header.bits <= 8) {
      convert_indices(row, header, palette, rgb);
    } else if (header.is_bgr()) {
      rgb_from_bgr(row, header.bits / 8, static_cast<size_t>(header.width), rgb);
    } else {
      convert_colors(row, header, rgb);
    }
  }
  return image;
}

}  // namespace glimpse
