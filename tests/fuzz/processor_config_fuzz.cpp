#include <cstdlib>
#include <string_view>

#include "base/json.h"
#include "image/image_processor.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace glimpse;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto config = ImageProcessorConfig::from_json(parse_json(text, "fuzz"));
    const PictureSize resized = smart_resize({.height = 333, .width = 1000}, config);
    if (resized.height <= 0 || resized.width <= 0) std::abort();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) std::abort();
  }
  return 0;
}
