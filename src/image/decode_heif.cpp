// HEIC and AVIF through libheif: the primary picture with the turns and mirrors of its container.
// EXIF's orientation is not applied on top: in these files it only repeats what the container says.
#include <algorithm>
#include <memory>

#include <libheif/heif.h>

#include <fmt/format.h>

#include "image/picture_file.h"

namespace glimpse {
namespace {

struct ContextFree {
  void operator()(heif_context* context) const { heif_context_free(context); }
};
struct HandleRelease {
  void operator()(heif_image_handle* handle) const { heif_image_handle_release(handle); }
};
struct ImageRelease {
  void operator()(heif_image* image) const { heif_image_release(image); }
};

bool lacks_codec(const heif_error& error) {
  return error.code == heif_error_Unsupported_filetype ||
         error.code == heif_error_Unsupported_feature ||
         error.subcode == heif_suberror_Unsupported_codec;
}

void expect_ok(const heif_error& error, const PictureFile& file, std::string_view format) {
  if (error.code == heif_error_Ok) return;
  std::string_view reason = error.message == nullptr ? "no reason given" : error.message;
  while (!reason.empty() && reason.back() == '\n') reason.remove_suffix(1);
  if (lacks_codec(error)) {
    throw_unsupported(file, format, fmt::format("libheif {}: {}", heif_get_version(), reason),
                      "install libheif's decoders (libheif-plugin-libde265 and "
                      "libheif-plugin-dav1d, where the distribution splits them), or convert the "
                      "picture to PNG or JPEG");
  }
  if (error.subcode == heif_suberror_End_of_data) throw_truncated(file, format, reason);
  throw_damaged(file, format, reason);
}

}  // namespace

RgbImage decode_heif(const PictureFile& file) {
  const std::string_view format = file.has(8, "avi") ? "AVIF" : "HEIC";
  const std::unique_ptr<heif_context, ContextFree> context(heif_context_alloc());
  if (!context) throw std::bad_alloc();
  expect_ok(
      heif_context_read_from_memory_without_copy(context.get(), file.data(), file.size(), nullptr),
      file, format);
  heif_image_handle* raw_handle = nullptr;
  expect_ok(heif_context_get_primary_image_handle(context.get(), &raw_handle), file, format);
  const std::unique_ptr<heif_image_handle, HandleRelease> handle(raw_handle);
  check_size(file, format, heif_image_handle_get_width(handle.get()),
             heif_image_handle_get_height(handle.get()));

  heif_image* raw_image = nullptr;
  expect_ok(heif_decode_image(handle.get(), &raw_image, heif_colorspace_RGB,
                              heif_chroma_interleaved_RGB, nullptr),
            file, format);
  const std::unique_ptr<heif_image, ImageRelease> decoded(raw_image);
  int stride = 0;
  const uint8_t* plane =
      heif_image_get_plane_readonly(decoded.get(), heif_channel_interleaved, &stride);
  const int width = heif_image_get_width(decoded.get(), heif_channel_interleaved);
  const int height = heif_image_get_height(decoded.get(), heif_channel_interleaved);
  if (plane == nullptr) throw_damaged(file, format, "its pixels are missing");
  RgbImage image = allocate_picture(file, format, width, height);
  const size_t row_bytes = static_cast<size_t>(width) * 3;
  for (int y = 0; y < height; ++y) {
    std::copy_n(plane + static_cast<size_t>(y) * stride, row_bytes,
                &image.pixels[static_cast<size_t>(y) * row_bytes]);
  }
  return image;
}

}  // namespace glimpse
