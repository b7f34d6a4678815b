// Bicubic resampling with antialias exactly as torch does it on bytes: weights in double, rounded
// to 16-bit fixed point with one precision an axis, rows first, bytes between the two passes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "image/image_processor.h"

namespace glimpse {
namespace {

// Keys' cubic kernel with a = -0.5.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// Which source samples make each output sample of one axis, and with what weights.
struct AxisWeights {
  int precision = 0;               // bits behind the binary point
  int stride = 0;                  // weights an output, the tail zero
  std::vector<int> first;          // [outputs]
  std::vector<int> count;          // [outputs]
  std::vector<int16_t> weights;    // [outputs, stride]

  [[nodiscard]] const int16_t* of(int output) const {
    return &weights[static_cast<size_t>(output) * stride];
  }
};

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
  axis.stride = static_cast<int>(std::ceil(support)) * 2 + 1;
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

uint8_t to_byte(int32_t sum, int precision) {
  return static_cast<uint8_t>(std::clamp(sum >> precision, 0, 255));
}

RgbImage resize_rows(const RgbImage& image, int width) {
  const AxisWeights axis = make_weights(image.width, width);
  RgbImage out{.width = width, .height = image.height, .pixels = {}};
  out.pixels.resize(static_cast<size_t>(width) * image.height * 3);
  const int32_t half = 1 << (axis.precision - 1);
  uint8_t* target = out.pixels.data();
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = &image.pixels[static_cast<size_t>(y) * image.width * 3];
    for (int x = 0; x < width; ++x, target += 3) {
      const int16_t* weights = axis.of(x);
      const uint8_t* source = row + axis.first[x] * 3;
      int32_t sum[3] = {half, half, half};
      for (int j = 0; j < axis.count[x]; ++j, source += 3) {
        for (int channel = 0; channel < 3; ++channel) sum[channel] += weights[j] * source[channel];
      }
      for (int channel = 0; channel < 3; ++channel) {
        target[channel] = to_byte(sum[channel], axis.precision);
      }
    }
  }
  return out;
}

RgbImage resize_columns(const RgbImage& image, int height) {
  const AxisWeights axis = make_weights(image.height, height);
  RgbImage out{.width = image.width, .height = height, .pixels = {}};
  const size_t row_bytes = static_cast<size_t>(image.width) * 3;
  out.pixels.resize(row_bytes * height);
  const int32_t half = 1 << (axis.precision - 1);
  std::vector<int32_t> sums(row_bytes);
  for (int y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), half);
    for (int j = 0; j < axis.count[y]; ++j) {
      const int32_t weight = axis.of(y)[j];
      const uint8_t* row = &image.pixels[(axis.first[y] + static_cast<size_t>(j)) * row_bytes];
      for (size_t i = 0; i < row_bytes; ++i) sums[i] += weight * row[i];
    }
    uint8_t* target = &out.pixels[static_cast<size_t>(y) * row_bytes];
    for (size_t i = 0; i < row_bytes; ++i) target[i] = to_byte(sums[i], axis.precision);
  }
  return out;
}

}  // namespace

RgbImage resize_bicubic(const RgbImage& image, PictureSize size) {
  check(image.width > 0 && image.height > 0 && size.width > 0 && size.height > 0,
        "both pictures have pixels");
  if (image.width == size.width && image.height == size.height) return image;
  if (image.width == size.width) return resize_columns(image, size.height);
  const RgbImage narrowed = resize_rows(image, size.width);
  return image.height == size.height ? narrowed : resize_columns(narrowed, size.height);
}

}  // namespace glimpse
