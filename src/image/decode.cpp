#include "image/decode.h"

#include <fmt/format.h>

#include "glimpse/error.h"
#include "image/picture_file.h"

namespace glimpse {
namespace {

using std::string_view_literals::operator""sv;

bool is_heif(const PictureFile& file) {
  if (!file.has(4, "ftyp")) return false;
  for (const std::string_view brand : {"heic", "heix", "hevc", "hevx", "heim", "heis", "mif1",
                                       "mif2", "msf1", "miaf", "avif", "avis"}) {
    if (file.has(8, brand)) return true;
  }
  return false;
}

bool is_tiff(const PictureFile& file) {
  return file.has(0, "II*\0"sv) || file.has(0, "MM\0*"sv) || file.has(0, "II+\0"sv) ||
         file.has(0, "MM\0+"sv);
}

}  // namespace

RgbImage decode_picture(std::span<const std::byte> bytes, std::string_view name,
                        const DecodeLimits& limits) {
  const PictureFile file{bytes, name, limits.max_pixels};
  if (file.has(0, "\xFF\xD8\xFF")) return decode_jpeg(file);
  if (file.has(0, "\x89PNG\r\n\x1A\n")) return decode_png(file);
  if (file.has(0, "RIFF") && file.has(8, "WEBP")) return decode_webp(file);
  if (file.has(0, "GIF87a") || file.has(0, "GIF89a")) return decode_gif(file);
  if (is_heif(file)) return decode_heif(file);
  if (is_tiff(file)) return decode_tiff(file);
  if (file.has(0, "BM")) return decode_bmp(file);
  throw Error(ErrorCode::bad_picture,
              bytes.empty()
                  ? fmt::format("{} is empty (0 bytes)", name)
                  : fmt::format("{} is not a picture: its {} bytes begin like no known format",
                                name, bytes.size()),
              "give a JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF file");
}

}  // namespace glimpse
