#include "image/pixel_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "image/pixel_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace glimpse::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

HWY_NOINLINE void rgb_from_bgr_simd(const uint8_t* pixels, size_t pixel_bytes, size_t count,
                                    uint8_t* out) {
  const hn::ScalableTag<uint8_t> bytes;
  const size_t lanes = hn::Lanes(bytes);
  auto blue = hn::Zero(bytes);
  auto green = blue;
  auto red = blue;
  auto unused = blue;
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    if (pixel_bytes == 4) {
      hn::LoadInterleaved4(bytes, pixels + 4 * i, blue, green, red, unused);
    } else {
      hn::LoadInterleaved3(bytes, pixels + 3 * i, blue, green, red);
    }
    hn::StoreInterleaved3(red, green, blue, bytes, out + 3 * i);
  }
  for (; i < count; ++i) {
    for (size_t channel = 0; channel < 3; ++channel) {
      out[3 * i + channel] = pixels[pixel_bytes * i + 2 - channel];
    }
  }
}

}  // namespace glimpse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace glimpse {

HWY_EXPORT(rgb_from_bgr_simd);

void rgb_from_bgr(const uint8_t* pixels, size_t pixel_bytes, size_t count, uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(rgb_from_bgr_simd)(pixels, pixel_bytes, count, out);
}

}  // namespace glimpse
#endif  // HWY_ONCE
