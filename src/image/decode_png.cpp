// PNG through libpng. Only the raw samples are taken from the library; they become RGB here by
// Pillow's rules: alpha is dropped, gray of 16 bits saturates at 255, colour of 16 bits keeps its
// high byte, palette entries that the file does not define are black, gamma is ignored.
// libpng's errors longjmp to the guarded_* functions, which hold no C++ object.
#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <string>

#include <png.h>

#include <fmt/format.h>

#include "image/orientation.h"
#include "image/picture_file.h"

namespace glimpse {
namespace {

using std::string_view_literals::operator""sv;

class PngReader {
 public:
  explicit PngReader(const PictureFile& file)
      : file_(file),
        png_(png_create_read_struct(
            PNG_LIBPNG_VER_STRING, this,
            [](png_structp png, png_const_charp message) {
              auto* self = static_cast<PngReader*>(png_get_error_ptr(png));
              std::strncpy(self->message_, message, sizeof self->message_ - 1);
              std::longjmp(self->escape_, 1);
            },
            [](png_structp, png_const_charp) {})) {
    if (png_ == nullptr || (info_ = png_create_info_struct(png_)) == nullptr ||
        (end_info_ = png_create_info_struct(png_)) == nullptr) {
      png_destroy_read_struct(&png_, &info_, &end_info_);
      throw std::bad_alloc();
    }
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_read_fn(png_, this, [](png_structp png, png_bytep target, size_t count) {
      auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
      if (count > self->file_.size() - self->position_) {
        self->truncated_ = true;
        png_error(png, "the file ends early");
      }
      std::memcpy(target, self->file_.data() + self->position_, count);
      self->position_ += count;
    });
  }
  ~PngReader() { png_destroy_read_struct(&png_, &info_, &end_info_); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  bool guarded_read_header() {
    if (setjmp(escape_) != 0) return false;
    png_read_info(png_, info_);
    return true;
  }

  // One byte a sample below 16 bits; every pass of an interlaced picture.
  bool guarded_start(int* passes) {
    if (setjmp(escape_) != 0) return false;
    png_set_packing(png_);
    *passes = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    return true;
  }

  bool guarded_read_row(uint8_t* row) {
    if (setjmp(escape_) != 0) return false;
    png_read_row(png_, row, nullptr);
    return true;
  }

  // Chunks behind the pixels may hold the orientation; damage there costs no pixel.
  bool guarded_read_end() {
    if (setjmp(escape_) != 0) return false;
    png_read_end(png_, end_info_);
    return true;
  }

  [[noreturn]] void throw_error(std::string_view where) const {
    if (truncated_) throw_truncated(file_, "PNG", where);
    throw_damaged(file_, "PNG", message_);
  }

  [[nodiscard]] png_structp png() const { return png_; }
  [[nodiscard]] png_infop info() const { return info_; }
  [[nodiscard]] png_infop end_info() const { return end_info_; }

 private:
  PictureFile file_;
  size_t position_ = 0;
  bool truncated_ = false;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  png_infop end_info_ = nullptr;
  std::jmp_buf escape_{};
  char message_[160] = {};
};

int png_orientation(const PngReader& reader) {
  std::span<const std::byte> exif;
  std::span<const std::byte> xmp;
  for (const png_infop info : {reader.info(), reader.end_info()}) {
    png_uint_32 size = 0;
    png_bytep data = nullptr;
    if (png_get_eXIf_1(reader.png(), info, &size, &data) != 0) {
      exif = {reinterpret_cast<const std::byte*>(data), size};
    }
    png_textp texts = nullptr;
    int count = 0;
    png_get_text(reader.png(), info, &texts, &count);
    for (int i = 0; i < count; ++i) {
      if (texts[i].key == "XML:com.adobe.xmp"sv) {
        xmp = std::as_bytes(std::span(texts[i].text, std::strlen(texts[i].text)));
      }
    }
  }
  return orientation(exif, xmp);
}

// Turns rows of raw samples into RGB.
class RowConverter {
 public:
  explicit RowConverter(const PngReader& reader)
      : channels_(png_get_channels(reader.png(), reader.info())),
        bit_depth_(png_get_bit_depth(reader.png(), reader.info())),
        color_(channels_ >= 3) {
    if (png_get_color_type(reader.png(), reader.info()) == PNG_COLOR_TYPE_PALETTE) {
      png_colorp palette = nullptr;
      int entries = 0;
      png_get_PLTE(reader.png(), reader.info(), &palette, &entries);
      for (int i = 0; i < entries; ++i) {
        lookup_[i][0] = palette[i].red;
        lookup_[i][1] = palette[i].green;
        lookup_[i][2] = palette[i].blue;
      }
    } else if (bit_depth_ <= 8) {
      const int largest = (1 << bit_depth_) - 1;
      for (int value = 0; value <= largest; ++value) {
        std::fill_n(lookup_[value], 3, static_cast<uint8_t>(value * 255 / largest));
      }
    }
  }

  void convert(const uint8_t* row, int width, uint8_t* rgb) const {
    if (bit_depth_ == 16) return convert_wide(row, width, rgb);
    if (!color_) {
      for (int x = 0; x < width; ++x) std::memcpy(rgb + 3 * x, lookup_[row[x * channels_]], 3);
      return;
    }
    for (int x = 0; x < width; ++x) std::memcpy(rgb + 3 * x, row + x * channels_, 3);
  }

 private:
  void convert_wide(const uint8_t* row, int width, uint8_t* rgb) const {
    for (int x = 0; x < width; ++x, row += 2 * channels_, rgb += 3) {
      if (color_) {
        for (int channel = 0; channel < 3; ++channel) rgb[channel] = row[2 * channel];
      } else {
        // With alpha Pillow keeps the high byte; gray alone saturates.
        const uint8_t gray = channels_ == 2 || row[0] == 0 ? row[channels_ == 2 ? 0 : 1] : 255;
        std::fill_n(rgb, 3, gray);
      }
    }
  }

  int channels_;
  int bit_depth_;  // of the file: 1, 2, 4, 8 or 16
  bool color_;
  uint8_t lookup_[256][3] = {};  // of a gray or palette sample
};

// deflate packs at most 1032 bytes into one.
int64_t minimum_bytes(const PngReader& reader) {
  return static_cast<int64_t>(png_get_rowbytes(reader.png(), reader.info())) *
         png_get_image_height(reader.png(), reader.info()) / 1032;
}

}  // namespace

RgbImage decode_png(const PictureFile& file) {
  PngReader reader(file);
  if (!reader.guarded_read_header()) reader.throw_error("the header is incomplete");
  const int64_t width = png_get_image_width(reader.png(), reader.info());
  const int64_t height = png_get_image_height(reader.png(), reader.info());
  check_size(file, "PNG", width, height);
  check_plausible(file, "PNG", minimum_bytes(reader));

  const RowConverter converter(reader);
  int passes = 1;
  if (!reader.guarded_start(&passes)) reader.throw_error("the header is incomplete");
  // Of an interlaced picture all raw rows are needed at once: each pass adds pixels to them.
  const size_t row_bytes = png_get_rowbytes(reader.png(), reader.info());
  std::vector<uint8_t> raw(row_bytes * (passes > 1 ? static_cast<size_t>(height) : 1));
  RgbImage image = allocate_picture(file, "PNG", width, height);
  for (int pass = 0; pass < passes; ++pass) {
    for (int64_t y = 0; y < height; ++y) {
      uint8_t* row = raw.data() + (passes > 1 ? static_cast<size_t>(y) * row_bytes : 0);
      if (!reader.guarded_read_row(row)) {
        reader.throw_error(fmt::format("{} of {} rows are there", y, height));
      }
      if (pass + 1 == passes) {
        converter.convert(row, image.width, &image.pixels[static_cast<size_t>(y * width) * 3]);
      }
    }
  }
  (void)reader.guarded_read_end();
  return make_upright(std::move(image), png_orientation(reader));
}

}  // namespace glimpse
