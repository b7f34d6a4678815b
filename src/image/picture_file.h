// What every decoder shares: the file it reads, the one place where pixels are allocated (after the
// limits are checked), and the sentences of its errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "image/rgb_image.h"

namespace glimpse {

/// One picture file in memory. A view: the bytes and the name outlive the decoding.
struct PictureFile {
  std::span<const std::byte> bytes;
  std::string_view name;
  int64_t max_pixels = 0;

  [[nodiscard]] const uint8_t* data() const {
    return reinterpret_cast<const uint8_t*>(bytes.data());
  }
  [[nodiscard]] size_t size() const { return bytes.size(); }
  /// True if `magic` stands at `offset`.
  [[nodiscard]] bool has(size_t offset, std::string_view magic) const;
};

/// Refuses an empty size and one above the limit, before anything is allocated for it.
void check_size(const PictureFile& file, std::string_view format, int64_t width, int64_t height);

/// A black picture of the size, which passes check_size() first.
[[nodiscard]] RgbImage allocate_picture(const PictureFile& file, std::string_view format,
                                        int64_t width, int64_t height);

/// Refuses, as truncated, a file smaller than the least that its format can pack the declared
/// picture into: a bomb of a few bytes never gets its pixels allocated.
void check_plausible(const PictureFile& file, std::string_view format, int64_t minimum_bytes);

/// The file ends before its picture does.
[[noreturn]] void throw_truncated(const PictureFile& file, std::string_view format,
                                  std::string_view detail);
/// The file contradicts its format, or its library refuses it.
[[noreturn]] void throw_damaged(const PictureFile& file, std::string_view format,
                                std::string_view detail);
/// A legal file of a kind that is not decoded.
[[noreturn]] void throw_unsupported(const PictureFile& file, std::string_view format,
                                    std::string_view detail,
                                    std::string hint = "convert the picture to PNG or JPEG");

/// One decoder a format. Each expects that the format's magic was seen, gives the pixels in their
/// upright orientation, and throws Error(bad_picture) or Error(unsupported). Thread-safe.
[[nodiscard]] RgbImage decode_jpeg(const PictureFile& file);
[[nodiscard]] RgbImage decode_png(const PictureFile& file);
[[nodiscard]] RgbImage decode_webp(const PictureFile& file);
[[nodiscard]] RgbImage decode_gif(const PictureFile& file);
[[nodiscard]] RgbImage decode_bmp(const PictureFile& file);
[[nodiscard]] RgbImage decode_tiff(const PictureFile& file);
[[nodiscard]] RgbImage decode_heif(const PictureFile& file);

}  // namespace glimpse
