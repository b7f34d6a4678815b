#include "image/image_processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "glimpse/error.h"

namespace glimpse {
namespace {

constexpr double kMaxAspectRatio = 200.0;

// Python's round(): halves go to the even neighbour.
int64_t round_half_even(double value) {
  const double below = std::floor(value);
  const double rest = value - below;
  const auto whole = static_cast<int64_t>(below);
  if (rest != 0.5) return rest < 0.5 ? whole : whole + 1;
  return whole % 2 == 0 ? whole : whole + 1;
}

void check_limits(int64_t min_pixels, int64_t max_pixels) {
  if (min_pixels <= 0 || max_pixels < min_pixels) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("min_pixels is {} and max_pixels is {}: the first must be at least 1 "
                            "and not above the second",
                            min_pixels, max_pixels),
                "lower min_pixels or raise max_pixels");
  }
}

constexpr size_t kHashedPieceBytes = 128 << 10;
// With fewer pieces a thread is hashed up sooner than it is woken up.
constexpr size_t kLeastPiecesToShare = 8;

// A tree of two levels: the pieces' hashes can be taken on several threads. The grid says how many
// pieces there are, so that pictures of other shapes differ.
Sha256 hash_content(const PatchGrid& grid, std::span<const uint8_t> pixels, WorkerPool* helpers) {
  const size_t num_pieces = (pixels.size() + kHashedPieceBytes - 1) / kHashedPieceBytes;
  const int32_t shape[3] = {grid.t, grid.h, grid.w};
  std::vector<std::byte> root(sizeof shape + num_pieces * sizeof(Sha256));
  std::memcpy(root.data(), shape, sizeof shape);
  parallel_for(num_pieces < kLeastPiecesToShare ? nullptr : helpers,
               static_cast<int64_t>(num_pieces), 1, [&](int64_t first, int64_t last) {
                 for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
                   const size_t begin = i * kHashedPieceBytes;
                   const size_t count = std::min(kHashedPieceBytes, pixels.size() - begin);
                   const Sha256 piece = sha256(std::as_bytes(pixels.subspan(begin, count)));
                   std::memcpy(root.data() + sizeof shape + i * sizeof piece, piece.data(),
                               sizeof piece);
                 }
               });
  return sha256(root);
}

}  // namespace

PictureSize smart_resize(PictureSize original, const ImageProcessorConfig& config) {
  check(original.height > 0 && original.width > 0, "a picture has pixels");
  const double height = original.height;
  const double width = original.width;
  const double ratio = std::max(height, width) / std::min(height, width);
  if (ratio > kMaxAspectRatio) {
    throw Error(
        ErrorCode::bad_picture,
        fmt::format("absolute aspect ratio must be smaller than {}, got {} ({} x {} pixels)",
                    kMaxAspectRatio, ratio, original.width, original.height),
        "crop the picture");
  }
  const int64_t factor = int64_t{config.patch_size} * config.merge_size;
  const auto step = static_cast<double>(factor);
  int64_t new_height = round_half_even(height / step) * factor;
  int64_t new_width = round_half_even(width / step) * factor;
  if (new_height * new_width > config.max_pixels) {
    const double shrink = std::sqrt(height * width / static_cast<double>(config.max_pixels));
    const auto fit = [&](double side) {
      return std::max(factor, static_cast<int64_t>(std::floor(side / shrink / step)) * factor);
    };
    new_height = fit(height);
    new_width = fit(width);
  } else if (new_height * new_width < config.min_pixels) {
    const double grow = std::sqrt(static_cast<double>(config.min_pixels) / (height * width));
    const auto fit = [&](double side) {
      return static_cast<int64_t>(std::ceil(side * grow / step)) * factor;
    };
    new_height = fit(height);
    new_width = fit(width);
  }
  return {.height = static_cast<int>(new_height), .width = static_cast<int>(new_width)};
}

// The rescaling is folded into mean and deviation, which are f32.
PixelTable make_pixel_table(const ImageProcessorConfig& config) {
  PixelTable table;
  for (int64_t channel = 0; channel < 3; ++channel) {
    const auto scale = static_cast<float>(1.0 / config.rescale_factor);
    const float mean = config.image_mean[channel] * scale;
    const float deviation = config.image_std[channel] * scale;
    for (int64_t value = 0; value < kPixelValues; ++value) {
      table[static_cast<size_t>(channel * kPixelValues + value)] =
          (static_cast<float>(value) - mean) / deviation;
    }
  }
  return table;
}

PictureSize ImageProcessor::resized_size(PictureSize original, int64_t min_pixels,
                                         int64_t max_pixels) const {
  ImageProcessorConfig config = config_;
  if (min_pixels != 0) config.min_pixels = min_pixels;
  if (max_pixels != 0) config.max_pixels = max_pixels;
  check_limits(config.min_pixels, config.max_pixels);
  return smart_resize(original, config);
}

ProcessedPicture ImageProcessor::process(RgbImage image, int64_t min_pixels, int64_t max_pixels,
                                         WorkerPool* helpers) const {
  ProcessedPicture picture;
  picture.original = {.height = image.height, .width = image.width};
  picture.resized = resized_size(picture.original, min_pixels, max_pixels);
  picture.grid = {.t = 1,
                  .h = picture.resized.height / config_.patch_size,
                  .w = picture.resized.width / config_.patch_size};
  picture.pixels = resize_bicubic(std::move(image), picture.resized, helpers).pixels;
  picture.content_hash = hash_content(picture.grid, picture.pixels, helpers);
  return picture;
}

}  // namespace glimpse
