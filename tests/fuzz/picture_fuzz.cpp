// Any bytes through the dispatcher, and what decodes through the whole preparation.
#include <cstdlib>

#include "glimpse/error.h"
#include "image/decode.h"
#include "image/image_processor.h"
#include "known_leaks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace glimpse;
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  try {
    RgbImage image = decode_picture(bytes, "fuzz", {.max_pixels = 1 << 18});
    const ProcessedPicture picture =
        ImageProcessor(ImageProcessorConfig{}).process(std::move(image), 1024, 16384);
    if (picture.pixels.size() != static_cast<size_t>(picture.grid.num_patches()) * 768)
      std::abort();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) std::abort();
  }
  return 0;
}
