#include "image/picture_file.h"

#include <cstring>

#include <fmt/format.h>

#include "glimpse/error.h"
#include "image/pixel_buffers.h"

namespace glimpse {

bool PictureFile::has(size_t offset, std::string_view magic) const {
  return offset + magic.size() <= bytes.size() &&
         std::memcmp(bytes.data() + offset, magic.data(), magic.size()) == 0;
}

void check_size(const PictureFile& file, std::string_view format, int64_t width, int64_t height) {
  if (width <= 0 || height <= 0) {
    throw Error(
        ErrorCode::bad_picture,
        fmt::format("{}: the {} picture declares a size of {} x {}, at least 1 x 1 is needed",
                    file.name, format, width, height),
        "the file is damaged: make it again");
  }
  // Sides are at most 2^32, so the product may pass 2^63: divide instead.
  if (width > file.max_pixels / height) {
    throw Error(ErrorCode::bad_picture,
                fmt::format("{}: the {} picture declares {} x {} pixels, the limit is {} pixels",
                            file.name, format, width, height, file.max_pixels),
                "make the picture smaller first");
  }
}

RgbImage allocate_picture(const PictureFile& file, std::string_view format, int64_t width,
                          int64_t height) {
  check_size(file, format, width, height);
  RgbImage image;
  image.width = static_cast<int>(width);
  image.height = static_cast<int>(height);
  image.pixels = take_pixels(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
  return image;
}

void check_plausible(const PictureFile& file, std::string_view format, int64_t minimum_bytes) {
  if (static_cast<int64_t>(file.size()) < minimum_bytes) {
    throw_truncated(
        file, format,
        fmt::format("a picture of its declared size takes at least {} bytes", minimum_bytes));
  }
}

void throw_truncated(const PictureFile& file, std::string_view format, std::string_view detail) {
  throw Error(ErrorCode::bad_picture,
              fmt::format("{}: the {} picture is truncated after {} bytes: {}", file.name, format,
                          file.size(), detail),
              "copy or download the file again");
}

void throw_damaged(const PictureFile& file, std::string_view format, std::string_view detail) {
  throw Error(ErrorCode::bad_picture,
              fmt::format("{}: the {} picture is damaged: {}", file.name, format, detail),
              "open it in a picture editor and save it again");
}

void throw_unsupported(const PictureFile& file, std::string_view format, std::string_view detail,
                       std::string hint) {
  throw Error(ErrorCode::unsupported,
              fmt::format("{}: the {} picture is of a kind that is not decoded: {}", file.name,
                          format, detail),
              std::move(hint));
}

}  // namespace glimpse
