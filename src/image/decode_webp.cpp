// WebP through libwebp: a still picture straight to RGB (alpha is dropped, the colour under it
// stays), the first frame of an animation on a canvas of transparent black.
#include <memory>

#include <webp/decode.h>
#include <webp/demux.h>

#include "image/orientation.h"
#include "image/picture_file.h"

namespace glimpse {
namespace {

struct DemuxerDelete {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
struct AnimationDelete {
  void operator()(WebPAnimDecoder* animation) const { WebPAnimDecoderDelete(animation); }
};

[[noreturn]] void throw_status(const PictureFile& file, VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OUT_OF_MEMORY:
      throw std::bad_alloc();
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
      throw_truncated(file, "WebP", "its pixels are incomplete");
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      throw_unsupported(file, "WebP", "it uses a feature that libwebp does not know");
    default:
      throw_damaged(file, "WebP", "libwebp cannot read its stream");
  }
}

std::span<const std::byte> find_chunk(const WebPDemuxer* demuxer, const char* name,
                                      WebPChunkIterator* chunk) {
  if (demuxer == nullptr || WebPDemuxGetChunk(demuxer, name, 1, chunk) == 0) return {};
  return {reinterpret_cast<const std::byte*>(chunk->chunk.bytes), chunk->chunk.size};
}

int webp_orientation(const WebPDemuxer* demuxer) {
  WebPChunkIterator exif{};
  WebPChunkIterator xmp{};
  const int found =
      orientation(find_chunk(demuxer, "EXIF", &exif), find_chunk(demuxer, "XMP ", &xmp));
  WebPDemuxReleaseChunkIterator(&exif);
  WebPDemuxReleaseChunkIterator(&xmp);
  return found;
}

RgbImage decode_still(const PictureFile& file, const WebPBitstreamFeatures& features) {
  RgbImage image = allocate_picture(file, "WebP", features.width, features.height);
  WebPDecoderConfig config;
  if (WebPInitDecoderConfig(&config) == 0) throw_damaged(file, "WebP", "libwebp does not match");
  config.output.colorspace = MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA = {image.pixels.data(), image.width * 3, image.pixels.size()};
  const VP8StatusCode status = WebPDecode(file.data(), file.size(), &config);
  WebPFreeDecBuffer(&config.output);
  if (status != VP8_STATUS_OK) throw_status(file, status);
  return image;
}

RgbImage decode_first_frame(const PictureFile& file, const WebPBitstreamFeatures& features) {
  check_size(file, "WebP", features.width, features.height);
  WebPAnimDecoderOptions options;
  if (WebPAnimDecoderOptionsInit(&options) == 0) {
    throw_damaged(file, "WebP", "libwebp does not match");
  }
  options.color_mode = MODE_RGBA;
  const WebPData data{file.data(), file.size()};
  const std::unique_ptr<WebPAnimDecoder, AnimationDelete> animation(
      WebPAnimDecoderNew(&data, &options));
  if (!animation) throw_truncated(file, "WebP", "its animation is incomplete");
  uint8_t* canvas = nullptr;  // [height, width, 4], owned by the animation
  int timestamp = 0;
  if (WebPAnimDecoderGetNext(animation.get(), &canvas, &timestamp) == 0) {
    throw_damaged(file, "WebP", "its first frame cannot be read");
  }
  RgbImage image = allocate_picture(file, "WebP", features.width, features.height);
  for (size_t pixel = 0; pixel * 3 < image.pixels.size(); ++pixel) {
    for (int channel = 0; channel < 3; ++channel) {
      image.pixels[pixel * 3 + channel] = canvas[pixel * 4 + channel];
    }
  }
  return image;
}

}  // namespace

RgbImage decode_webp(const PictureFile& file) {
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(file.data(), file.size(), &features);
  if (status != VP8_STATUS_OK) throw_status(file, status);
  RgbImage image = features.has_animation != 0 ? decode_first_frame(file, features)
                                               : decode_still(file, features);
  const WebPData data{file.data(), file.size()};
  const std::unique_ptr<WebPDemuxer, DemuxerDelete> demuxer(WebPDemux(&data));
  return make_upright(std::move(image), webp_orientation(demuxer.get()));
}

}  // namespace glimpse
