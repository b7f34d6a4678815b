// JPEG through libjpeg-turbo with its default (accurate) transform and smooth chroma upsampling,
// which is what Pillow uses. The library reports fatal errors by a callback that must not return:
// it longjmps to the guarded_* functions, which hold no C++ object and so leave nothing behind.
#include <algorithm>
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE
#include <cstring>
#include <string>

#include <jpeglib.h>

#include <fmt/format.h>

#include "image/orientation.h"
#include "image/picture_file.h"

namespace glimpse {
namespace {

constexpr int kExifMarker = JPEG_APP0 + 1;
// A progressive file repeats the whole picture in each scan; ten or so are usual.
constexpr int kMaxScans = 500;
using std::string_view_literals::operator""sv;

enum class Outcome { done, truncated, failed };

// Owns one decompressor over a file in memory.
class JpegReader {
 public:
  explicit JpegReader(const PictureFile& file) {
    info_.err = jpeg_std_error(&errors_);
    info_.client_data = this;
    errors_.error_exit = [](j_common_ptr info) {
      auto* self = static_cast<JpegReader*>(info->client_data);
      info->err->format_message(info, self->message_);
      std::longjmp(self->escape_, 1);
    };
    errors_.emit_message = [](j_common_ptr, int) {};
    errors_.output_message = [](j_common_ptr) {};
    source_.next_input_byte = file.data();
    source_.bytes_in_buffer = file.size();
    source_.init_source = [](j_decompress_ptr) {};
    source_.term_source = [](j_decompress_ptr) {};
    source_.resync_to_restart = jpeg_resync_to_restart;
    // The end of the file suspends the decompressor instead of making up an end marker.
    source_.fill_input_buffer = [](j_decompress_ptr) -> boolean { return FALSE; };
    source_.skip_input_data = [](j_decompress_ptr info, long count) {
      const size_t skipped =
          std::min(static_cast<size_t>(std::max(count, 0L)), info->src->bytes_in_buffer);
      info->src->next_input_byte += skipped;
      info->src->bytes_in_buffer -= skipped;
    };
    progress_.progress_monitor = [](j_common_ptr info) {
      auto* self = static_cast<JpegReader*>(info->client_data);
      if (self->info_.input_scan_number <= kMaxScans) return;
      std::snprintf(self->message_, sizeof self->message_, "more than %d scans", kMaxScans);
      std::longjmp(self->escape_, 1);
    };
  }
  ~JpegReader() { jpeg_destroy_decompress(&info_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  Outcome guarded_read_header() {
    if (setjmp(escape_) != 0) return Outcome::failed;
    jpeg_create_decompress(&info_);
    info_.client_data = this;
    info_.src = &source_;
    info_.progress = &progress_;
    jpeg_save_markers(&info_, kExifMarker, 0xFFFF);
    return jpeg_read_header(&info_, TRUE) == JPEG_HEADER_OK ? Outcome::done : Outcome::truncated;
  }

  Outcome guarded_start(J_COLOR_SPACE colors) {
    if (setjmp(escape_) != 0) return Outcome::failed;
    info_.out_color_space = colors;
    return jpeg_start_decompress(&info_) ? Outcome::done : Outcome::truncated;
  }

  Outcome guarded_read_row(uint8_t* row) {
    if (setjmp(escape_) != 0) return Outcome::failed;
    return jpeg_read_scanlines(&info_, &row, 1) == 1 ? Outcome::done : Outcome::truncated;
  }

  [[nodiscard]] const jpeg_decompress_struct& info() const { return info_; }
  [[nodiscard]] const char* message() const { return message_; }

 private:
  jpeg_decompress_struct info_{};
  jpeg_error_mgr errors_{};
  jpeg_source_mgr source_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf escape_{};
  char message_[JMSG_LENGTH_MAX] = {};
};

void expect_done(Outcome outcome, const PictureFile& file, const JpegReader& reader,
                 std::string_view where) {
  if (outcome == Outcome::truncated) throw_truncated(file, "JPEG", where);
  if (outcome == Outcome::failed) throw_damaged(file, "JPEG", reader.message());
}

// Huffman codes have at least one bit, and every block of every component at least one code.
int64_t minimum_bytes(const jpeg_decompress_struct& info) {
  if (info.arith_code) return 0;
  int64_t blocks = 0;
  for (int i = 0; i < info.num_components; ++i) {
    const jpeg_component_info& component = info.comp_info[i];
    const int64_t across = int64_t{info.image_width} * component.h_samp_factor;
    const int64_t down = int64_t{info.image_height} * component.v_samp_factor;
    blocks += (across / (8 * info.max_h_samp_factor)) * (down / (8 * info.max_v_samp_factor));
  }
  return blocks / 8;
}

int jpeg_orientation(const jpeg_decompress_struct& info) {
  constexpr std::string_view kExif = "Exif\0\0"sv;
  constexpr std::string_view kXmp = "http://ns.adobe.com/xap/1.0/\0"sv;
  std::string exif;  // may be spread over several markers
  std::string_view xmp;
  for (auto* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.starts_with(kExif)) {
      exif += exif.empty() ? data : data.substr(kExif.size());
    } else if (data.starts_with(kXmp)) {
      xmp = data.substr(kXmp.size());
    }
  }
  return orientation(std::as_bytes(std::span(exif)), std::as_bytes(std::span(xmp)));
}

// Adobe's programs store CMYK inverted and everyone follows them; Pillow inverts whatever the
// markers say, then multiplies each ink with the light that black leaves, rounding the division
// by 255 to nearest.
void convert_cmyk_row(const uint8_t* cmyk, int width, uint8_t* rgb) {
  for (int x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int light = cmyk[3];
    for (int channel = 0; channel < 3; ++channel) {
      const int product = (255 - cmyk[channel]) * light + 128;
      const int absorbed = ((product >> 8) + product) >> 8;
      rgb[channel] = static_cast<uint8_t>(std::max(light - absorbed, 0));
    }
  }
}

}  // namespace

RgbImage decode_jpeg(const PictureFile& file) {
  JpegReader reader(file);
  expect_done(reader.guarded_read_header(), file, reader, "the header is incomplete");
  const jpeg_decompress_struct& info = reader.info();
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4) {
    throw_unsupported(file, "JPEG", fmt::format("{} colour components", info.num_components));
  }
  check_size(file, "JPEG", info.image_width, info.image_height);
  check_plausible(file, "JPEG", minimum_bytes(info));
  const int upright = jpeg_orientation(info);

  const bool cmyk = info.num_components == 4;
  // libjpeg-turbo expands gray to RGB itself.
  expect_done(reader.guarded_start(cmyk ? JCS_CMYK : JCS_RGB), file, reader,
              "its scans are incomplete");
  RgbImage image = allocate_picture(file, "JPEG", info.output_width, info.output_height);
  std::vector<uint8_t> cmyk_row(cmyk ? size_t{info.output_width} * 4 : 0);
  uint8_t* target = image.pixels.data();
  for (int y = 0; y < image.height; ++y, target += size_t{info.output_width} * 3) {
    const Outcome outcome = reader.guarded_read_row(cmyk ? cmyk_row.data() : target);
    if (outcome != Outcome::done) {
      expect_done(outcome, file, reader, fmt::format("{} of {} rows are there", y, image.height));
    }
    if (cmyk) convert_cmyk_row(cmyk_row.data(), image.width, target);
  }
  return make_upright(std::move(image), upright);
}

}  // namespace glimpse
