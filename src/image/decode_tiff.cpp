// TIFF through libtiff: the first page, in strips or tiles, planes together or apart. The library
// undoes the compression; samples become RGB here by Pillow's rules (alpha dropped, premultiplied
// colour divided by it, gray of 16 bits saturated, colour of 16 bits by its high byte).
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>

#include <tiffio.h>

#include <fmt/format.h>

#include "image/orientation.h"
#include "image/picture_file.h"

namespace glimpse {
namespace {

struct TiffSource {
  PictureFile file;
  uint64_t position = 0;
  char message[160] = {};
};

TiffSource& as_source(thandle_t handle) {
  return *static_cast<TiffSource*>(handle);
}

tmsize_t read_bytes(thandle_t handle, void* target, tmsize_t count) {
  TiffSource& source = as_source(handle);
  if (count <= 0 || source.position >= source.file.size()) return 0;
  const size_t taken = std::min<uint64_t>(count, source.file.size() - source.position);
  std::memcpy(target, source.file.data() + source.position, taken);
  source.position += taken;
  return static_cast<tmsize_t>(taken);
}

toff_t seek_to(thandle_t handle, toff_t offset, int whence) {
  TiffSource& source = as_source(handle);
  const uint64_t base = whence == SEEK_CUR   ? source.position
                        : whence == SEEK_END ? source.file.size()
                                             : 0;
  return source.position = base + offset;
}

int keep_message(TIFF*, void* user, const char*, const char* format, va_list arguments) {
  TiffSource& source = *static_cast<TiffSource*>(user);
  if (source.message[0] == '\0') {
    std::vsnprintf(source.message, sizeof source.message, format, arguments);
  }
  return 1;
}

int ignore_message(TIFF*, void*, const char*, const char*, va_list) {
  return 1;
}

struct TiffClose {
  void operator()(TIFF* tiff) const { TIFFClose(tiff); }
};
using TiffPointer = std::unique_ptr<TIFF, TiffClose>;

TiffPointer open_tiff(TiffSource& source) {
  struct OptionsFree {
    void operator()(TIFFOpenOptions* options) const { TIFFOpenOptionsFree(options); }
  };
  const std::unique_ptr<TIFFOpenOptions, OptionsFree> options(TIFFOpenOptionsAlloc());
  // Tables of a damaged directory ask for gigabytes; a block of the largest picture needs 8 bytes
  // a pixel.
  TIFFOpenOptionsSetMaxSingleMemAlloc(options.get(),
                                      std::max<tmsize_t>(source.file.max_pixels * 8, 1 << 20));
  TIFFOpenOptionsSetErrorHandlerExtR(options.get(), keep_message, &source);
  TIFFOpenOptionsSetWarningHandlerExtR(options.get(), ignore_message, nullptr);
  // 'm': no memory mapping, the bytes are there already.
  TiffPointer tiff(TIFFClientOpenExt(
      "picture", "rm", &source, read_bytes,
      [](thandle_t, void*, tmsize_t) -> tmsize_t { return 0; }, seek_to,
      [](thandle_t) { return 0; },
      [](thandle_t handle) -> toff_t { return as_source(handle).file.size(); },
      [](thandle_t, void**, toff_t*) { return 0; }, [](thandle_t, void*, toff_t) {},
      options.get()));
  if (!tiff) throw_damaged(source.file, "TIFF", source.message);
  return tiff;
}

struct TiffLayout {
  uint32_t width = 0;
  uint32_t height = 0;
  uint16_t bits = 1;     // a sample
  uint16_t samples = 1;  // a pixel
  uint16_t planar = PLANARCONFIG_CONTIG;
  uint16_t photometric = PHOTOMETRIC_MINISBLACK;
  uint16_t format = SAMPLEFORMAT_UINT;
  bool premultiplied = false;
  const uint16_t* palette[3] = {};

  // Colour samples at the front of a pixel; what follows is alpha or something else to drop.
  [[nodiscard]] int colors() const {
    return photometric == PHOTOMETRIC_SEPARATED                                 ? 4
           : photometric == PHOTOMETRIC_RGB || photometric == PHOTOMETRIC_YCBCR ? 3
                                                                                : 1;
  }
};

bool is_known(const TiffLayout& layout) {
  if (layout.format != SAMPLEFORMAT_UINT || layout.samples < layout.colors()) return false;
  const bool gray =
      layout.photometric == PHOTOMETRIC_MINISBLACK || layout.photometric == PHOTOMETRIC_MINISWHITE;
  const bool small = layout.bits == 1 || layout.bits == 2 || layout.bits == 4;
  if (gray) return layout.bits == 8 || layout.bits == 16 || (small && layout.samples == 1);
  if (layout.photometric == PHOTOMETRIC_PALETTE) {
    return layout.palette[0] != nullptr && (layout.bits == 8 || (small && layout.samples == 1));
  }
  if (layout.photometric == PHOTOMETRIC_RGB) return layout.bits == 8 || layout.bits == 16;
  return (layout.photometric == PHOTOMETRIC_SEPARATED || layout.photometric == PHOTOMETRIC_YCBCR) &&
         layout.bits == 8;
}

TiffLayout read_layout(TIFF* tiff, const TiffSource& source) {
  TiffLayout layout;
  TIFFGetField(tiff, TIFFTAG_IMAGEWIDTH, &layout.width);
  TIFFGetField(tiff, TIFFTAG_IMAGELENGTH, &layout.height);
  TIFFGetFieldDefaulted(tiff, TIFFTAG_BITSPERSAMPLE, &layout.bits);
  TIFFGetFieldDefaulted(tiff, TIFFTAG_SAMPLESPERPIXEL, &layout.samples);
  TIFFGetFieldDefaulted(tiff, TIFFTAG_PLANARCONFIG, &layout.planar);
  TIFFGetFieldDefaulted(tiff, TIFFTAG_SAMPLEFORMAT, &layout.format);
  TIFFGetField(tiff, TIFFTAG_PHOTOMETRIC, &layout.photometric);
  check_size(source.file, "TIFF", layout.width, layout.height);
  if (layout.photometric == PHOTOMETRIC_PALETTE) {
    uint16_t* maps[3] = {};
    if (TIFFGetField(tiff, TIFFTAG_COLORMAP, &maps[0], &maps[1], &maps[2]) == 1) {
      std::copy_n(maps, 3, layout.palette);
    }
  }
  uint16_t extra_count = 0;
  uint16_t* extra = nullptr;
  TIFFGetFieldDefaulted(tiff, TIFFTAG_EXTRASAMPLES, &extra_count, &extra);
  layout.premultiplied = extra_count > 0 && extra[0] == EXTRASAMPLE_ASSOCALPHA &&
                         layout.photometric == PHOTOMETRIC_RGB && layout.bits == 8;
  uint16_t compression = COMPRESSION_NONE;
  TIFFGetFieldDefaulted(tiff, TIFFTAG_COMPRESSION, &compression);
  if (TIFFIsCODECConfigured(compression) == 0) {
    throw_unsupported(source.file, "TIFF", fmt::format("compression {}", compression));
  }
  if (layout.photometric == PHOTOMETRIC_YCBCR && compression == COMPRESSION_JPEG) {
    TIFFSetField(tiff, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
  } else if (layout.photometric == PHOTOMETRIC_YCBCR) {
    throw_unsupported(source.file, "TIFF", "YCbCr without JPEG compression");
  }
  if (!is_known(layout)) {
    throw_unsupported(source.file, "TIFF",
                      fmt::format("photometric {}, {} samples of {} bits in format {}",
                                  layout.photometric, layout.samples, layout.bits, layout.format));
  }
  return layout;
}

// Gives one sample of a row as 8 bits by Pillow's rule for its kind.
class SampleReader {
 public:
  explicit SampleReader(const TiffLayout& layout)
      : bits_(layout.bits),
        gray_(layout.colors() == 1 && layout.palette[0] == nullptr),
        alone_(layout.samples == 1),
        inverted_(layout.photometric == PHOTOMETRIC_MINISWHITE) {}

  [[nodiscard]] uint8_t read(const uint8_t* row, int64_t sample) const {
    if (bits_ == 8) return finish(row[sample]);
    if (bits_ == 16) {
      uint16_t value = 0;  // libtiff gives the machine's byte order
      std::memcpy(&value, row + 2 * sample, 2);
      return gray_ && alone_ ? static_cast<uint8_t>(std::min<int>(value, 255)) : finish(value >> 8);
    }
    const int64_t bit = sample * bits_;
    const int largest = (1 << bits_) - 1;
    const int value = row[bit / 8] >> (8 - bits_ - bit % 8) & largest;
    return gray_ ? finish(value * 255 / largest) : static_cast<uint8_t>(value);
  }

 private:
  [[nodiscard]] uint8_t finish(int value) const {
    return static_cast<uint8_t>(inverted_ ? 255 - value : value);
  }

  int bits_;
  bool gray_;
  bool alone_;
  bool inverted_;
};

void convert_ink(const uint8_t* ink, uint8_t* rgb) {
  const int light = 255 - ink[3];
  for (int channel = 0; channel < 3; ++channel) {
    const int product = ink[channel] * light + 128;
    const int absorbed = ((product >> 8) + product) >> 8;
    rgb[channel] = static_cast<uint8_t>(std::max(light - absorbed, 0));
  }
}

// Turns the colour samples of a pixel (and its alpha) into RGB.
void convert_pixel(const TiffLayout& layout, const uint8_t* samples, uint8_t* rgb) {
  if (layout.colors() == 4) return convert_ink(samples, rgb);
  if (layout.palette[0] != nullptr) {
    for (int i = 0; i < 3; ++i) rgb[i] = static_cast<uint8_t>(layout.palette[i][samples[0]] >> 8);
    return;
  }
  if (layout.colors() == 1) {
    std::fill_n(rgb, 3, samples[0]);
    return;
  }
  std::copy_n(samples, 3, rgb);
  if (!layout.premultiplied || samples[3] == 255) return;
  for (int i = 0; i < 3; ++i) {
    rgb[i] =
        samples[3] == 0 ? 0 : static_cast<uint8_t>(std::min(samples[i] * 255 / samples[3], 255));
  }
}

// A strip or tile: where it stands and how wide its stored rows are.
struct Block {
  uint32_t x = 0;
  uint32_t y = 0;
  uint32_t width = 0;
  uint32_t height = 0;
};

// Walks the blocks of the page, its planes one beside the other.
class PageReader {
 public:
  PageReader(TIFF* tiff, const TiffSource& source, const TiffLayout& layout)
      : tiff_(tiff),
        source_(source),
        layout_(layout),
        tiled_(TIFFIsTiled(tiff) != 0),
        planes_(layout.planar == PLANARCONFIG_SEPARATE ? layout.samples : 1),
        block_width_(layout.width),
        block_height_(layout.height) {
    if (tiled_) {
      TIFFGetField(tiff, TIFFTAG_TILEWIDTH, &block_width_);
      TIFFGetField(tiff, TIFFTAG_TILELENGTH, &block_height_);
    } else {
      TIFFGetFieldDefaulted(tiff, TIFFTAG_ROWSPERSTRIP, &block_height_);
      block_height_ = std::min(block_height_, layout.height);
    }
    // A tile may be larger than the picture, yet not than the limit.
    check_size(source.file, "TIFF", block_width_, block_height_);
    const tmsize_t bytes = tiled_ ? TIFFTileSize(tiff) : TIFFStripSize(tiff);
    row_bytes_ = tiled_ ? TIFFTileRowSize(tiff) : TIFFScanlineSize(tiff);
    const int64_t samples = planes_ == 1 ? layout.samples : 1;
    const int64_t row_needs = (int64_t{block_width_} * samples * layout.bits + 7) / 8;
    if (bytes <= 0 || row_bytes_ < row_needs || bytes / row_bytes_ < block_height_) {
      throw_damaged(source.file, "TIFF", fmt::format("blocks of {} bytes", bytes));
    }
    check_packing(bytes);
    plane_bytes_ = static_cast<size_t>(bytes);
    buffer_.resize(plane_bytes_ * planes_);
  }

  void read(RgbImage& image) {
    for (uint32_t y = 0; y < layout_.height; y += block_height_) {
      for (uint32_t x = 0; x < layout_.width; x += block_width_) {
        load(x, y);
        convert({.x = x,
                 .y = y,
                 .width = std::min(block_width_, layout_.width - x),
                 .height = std::min(block_height_, layout_.height - y)},
                image);
      }
    }
  }

 private:
  // The densest code in use (LZW, deflate, LZMA, a fax's white rows) stays below this.
  void check_packing(tmsize_t block_bytes) const {
    constexpr int64_t kDensestPacking = 20000;
    check_plausible(source_.file, "TIFF", block_bytes / kDensestPacking);
  }

  void load(uint32_t x, uint32_t y) {
    for (uint32_t plane = 0; plane < planes_; ++plane) {
      uint8_t* target = buffer_.data() + plane * plane_bytes_;
      const auto size = static_cast<tmsize_t>(plane_bytes_);
      const uint16_t sample = static_cast<uint16_t>(plane);
      tmsize_t read = 0;
      if (tiled_) {
        read = TIFFReadEncodedTile(tiff_, TIFFComputeTile(tiff_, x, y, 0, sample), target, size);
      } else {
        read = TIFFReadEncodedStrip(tiff_, TIFFComputeStrip(tiff_, y, sample), target, size);
      }
      const tmsize_t rows = std::min(block_height_, layout_.height - y);
      if (read < (tiled_ ? size : rows * row_bytes_)) {
        throw_truncated(source_.file, "TIFF",
                        fmt::format("the block at row {} cannot be read ({})", y,
                                    source_.message[0] == '\0' ? "it is short" : source_.message));
      }
    }
  }

  void convert(const Block& block, RgbImage& image) const {
    const SampleReader reader(layout_);
    const int used = layout_.colors() + (layout_.premultiplied ? 1 : 0);
    for (uint32_t y = 0; y < block.height; ++y) {
      const uint8_t* row = buffer_.data() + static_cast<size_t>(y) * row_bytes_;
      size_t target = (static_cast<size_t>(block.y + y) * layout_.width + block.x) * 3;
      for (uint32_t x = 0; x < block.width; ++x, target += 3) {
        uint8_t samples[4] = {};
        for (int i = 0; i < used; ++i) {
          samples[i] = planes_ == 1 ? reader.read(row, int64_t{x} * layout_.samples + i)
                                    : reader.read(row + i * plane_bytes_, x);
        }
        convert_pixel(layout_, samples, &image.pixels[target]);
      }
    }
  }

  TIFF* tiff_;
  const TiffSource& source_;
  const TiffLayout& layout_;
  bool tiled_;
  uint32_t planes_;
  uint32_t block_width_;
  uint32_t block_height_;
  tmsize_t row_bytes_ = 0;
  size_t plane_bytes_ = 0;
  std::vector<uint8_t> buffer_;  // [planes, plane_bytes]
};

int tiff_orientation(TIFF* tiff) {
  uint16_t tag = 0;
  if (TIFFGetField(tiff, TIFFTAG_ORIENTATION, &tag) == 1) return tag;
  uint32_t size = 0;
  const void* xmp = nullptr;
  if (TIFFGetField(tiff, TIFFTAG_XMLPACKET, &size, &xmp) != 1) return 1;
  return xmp_orientation({static_cast<const std::byte*>(xmp), size});
}

}  // namespace

RgbImage decode_tiff(const PictureFile& file) {
  TiffSource source{.file = file};
  const TiffPointer tiff = open_tiff(source);
  const TiffLayout layout = read_layout(tiff.get(), source);
  PageReader page(tiff.get(), source, layout);
  RgbImage image = allocate_picture(file, "TIFF", layout.width, layout.height);
  page.read(image);
  return make_upright(std::move(image), tiff_orientation(tiff.get()));
}

}  // namespace glimpse
