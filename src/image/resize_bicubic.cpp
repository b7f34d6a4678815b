// Bicubic resampling with antialias exactly as torch does it on bytes: weights in double, rounded
// to 16-bit fixed point with one precision an axis, rows first, bytes between the two passes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "image/image_processor.h"
#include "image/pixel_buffers.h"
#include "image/resize_kernels.h"

namespace glimpse {
namespace {

// Keys' cubic kernel with a = -0.5.
double cubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * kA;
  return 0.0;
}

// The finest precision whose largest weight still fits into 16 bits.
int choose_precision(double largest_weight) {
  for (int precision = 0; precision < 22; ++precision) {
    if (static_cast<int>(0.5 + largest_weight * (1 << (precision + 1))) >= (1 << 15)) {
      return precision;
    }
  }
  return 22;
}

AxisWeights make_weights(int inputs, int outputs) {
  const double scale = static_cast<double>(inputs) / outputs;
  const double support = 2.0 * std::max(scale, 1.0);
  const double inverse = 1.0 / std::max(scale, 1.0);
  AxisWeights axis;
  axis.stride = (static_cast<int>(std::ceil(support)) * 2 + 1 + 3) / 4 * 4;
  axis.first.resize(outputs);
  axis.count.resize(outputs);
  axis.weights.resize(static_cast<size_t>(outputs) * axis.stride);
  std::vector<double> exact(axis.weights.size());  // [outputs, stride]
  double largest = 0.0;
  for (int i = 0; i < outputs; ++i) {
    const double center = scale * (i + 0.5);
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int last = std::min(inputs, static_cast<int>(center + support + 0.5));
    double* weights = &exact[static_cast<size_t>(i) * axis.stride];
    double total = 0.0;
    for (int j = 0; j < last - first; ++j) {
      weights[j] = cubic((j + first - center + 0.5) * inverse);
      total += weights[j];
    }
    for (int j = 0; j < last - first; ++j) {
      if (total != 0.0) weights[j] /= total;
      largest = std::max(largest, weights[j]);
    }
    axis.first[i] = first;
    axis.count[i] = last - first;
  }
  axis.precision = choose_precision(largest);
  for (size_t i = 0; i < exact.size(); ++i) {
    // std::round takes halves away from zero, as torch does.
    axis.weights[i] = static_cast<int16_t>(std::round(exact[i] * (1 << axis.precision)));
  }
  return axis;
}

// Rows that one thread takes at once.
constexpr int64_t kBand = 32;

RgbImage resize_rows(const RgbImage& image, int width, WorkerPool* helpers) {
  const AxisWeights axis = make_weights(image.width, width);
  RgbImage out{.width = width, .height = image.height, .pixels = {}};
  const size_t source_bytes = static_cast<size_t>(image.width) * 3;
  const size_t target_bytes = static_cast<size_t>(width) * 3;
  out.pixels = take_pixels(target_bytes * image.height);
  parallel_for(helpers, image.height, kBand, [&](int64_t first, int64_t last) {
    std::vector<uint8_t> padded(source_bytes + kRowPadding);
    for (auto row = static_cast<size_t>(first); row < static_cast<size_t>(last); ++row) {
      std::memcpy(padded.data(), &image.pixels[row * source_bytes], source_bytes);
      resize_row(padded.data(), axis, width, &out.pixels[row * target_bytes]);
    }
  });
  return out;
}

RgbImage resize_columns(const RgbImage& image, int height, WorkerPool* helpers) {
  const AxisWeights axis = make_weights(image.height, height);
  RgbImage out{.width = image.width, .height = height, .pixels = {}};
  const size_t row_bytes = static_cast<size_t>(image.width) * 3;
  out.pixels = take_pixels(row_bytes * height);
  parallel_for(helpers, height, kBand, [&](int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y) {
      blend_rows(&image.pixels[axis.first[y] * row_bytes], row_bytes, axis, static_cast<int>(y),
                 &out.pixels[static_cast<size_t>(y) * row_bytes]);
    }
  });
  return out;
}

}  // namespace

RgbImage resize_bicubic(RgbImage image, PictureSize size, WorkerPool* helpers) {
  check(image.width > 0 && image.height > 0 && size.width > 0 && size.height > 0,
        "both pictures have pixels");
  const auto replace = [&](RgbImage with) {
    recycle_pixels(std::exchange(image, std::move(with)).pixels);
  };
  if (image.width != size.width) replace(resize_rows(image, size.width, helpers));
  if (image.height != size.height) replace(resize_columns(image, size.height, helpers));
  return image;
}

}  // namespace glimpse
