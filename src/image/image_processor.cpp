#include "image/image_processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

// SHA-256 over the grid and the resized bytes, so that equal bytes of other shapes differ.
Sha256 hash_content(const PatchGrid& grid, const RgbImage& resized) {
  const int32_t shape[3] = {grid.t, grid.h, grid.w};
  std::vector<std::byte> content(sizeof shape + resized.pixels.size());
  std::memcpy(content.data(), shape, sizeof shape);
  std::memcpy(content.data() + sizeof shape, resized.pixels.data(), resized.pixels.size());
  return sha256(content);
}

// What each byte becomes, by channel: a multiplication is too slow to repeat for every sample of
// every frame. The rescaling is folded into mean and deviation, which are f32.
using NormalizeTable = float[3][256];

void fill_table(const ImageProcessorConfig& config, NormalizeTable& table) {
  for (int channel = 0; channel < 3; ++channel) {
    const auto scale = static_cast<float>(1.0 / config.rescale_factor);
    const float mean = config.image_mean[channel] * scale;
    const float deviation = config.image_std[channel] * scale;
    for (int value = 0; value < 256; ++value) {
      table[channel][value] = (static_cast<float>(value) - mean) / deviation;
    }
  }
}

// Writes one patch: [channel, frame, y, x], the frames being copies of the still.
void write_patch(const RgbImage& image, const ImageProcessorConfig& config,
                 const NormalizeTable& table, size_t corner, float* out) {
  const int patch = config.patch_size;
  const size_t frame_size = static_cast<size_t>(patch) * patch;
  for (int channel = 0; channel < 3; ++channel) {
    float* frame = out + channel * config.temporal_patch_size * frame_size;
    for (int y = 0; y < patch; ++y) {
      const uint8_t* row = &image.pixels[corner + static_cast<size_t>(y) * image.width * 3];
      for (int x = 0; x < patch; ++x) frame[y * patch + x] = table[channel][row[x * 3 + channel]];
    }
    for (int t = 1; t < config.temporal_patch_size; ++t) {
      std::copy_n(frame, frame_size, frame + t * frame_size);
    }
  }
}

// Patches in merge-block order: the merge_size^2 patches of a block follow each other.
std::vector<float> cut_patches(const RgbImage& image, const PatchGrid& grid,
                               const ImageProcessorConfig& config) {
  NormalizeTable table;
  fill_table(config, table);
  const int merge = config.merge_size;
  const size_t patch_floats =
      size_t{3} * config.temporal_patch_size * config.patch_size * config.patch_size;
  std::vector<float> patches(static_cast<size_t>(grid.num_patches()) * patch_floats);
  float* out = patches.data();
  for (int block_row = 0; block_row < grid.h; block_row += merge) {
    for (int block_column = 0; block_column < grid.w; block_column += merge) {
      for (int row = block_row; row < block_row + merge; ++row) {
        for (int column = block_column; column < block_column + merge; ++column) {
          const size_t y = static_cast<size_t>(row) * config.patch_size;
          const size_t x = static_cast<size_t>(column) * config.patch_size;
          write_patch(image, config, table, (y * image.width + x) * 3, out);
          out += patch_floats;
        }
      }
    }
  }
  return patches;
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

Patches ImageProcessor::process(const RgbImage& image, int64_t min_pixels,
                                int64_t max_pixels) const {
  ImageProcessorConfig config = config_;
  if (min_pixels != 0) config.min_pixels = min_pixels;
  if (max_pixels != 0) config.max_pixels = max_pixels;
  check_limits(config.min_pixels, config.max_pixels);

  Patches patches;
  patches.original = {.height = image.height, .width = image.width};
  patches.resized = smart_resize(patches.original, config);
  patches.grid = {.t = 1,
                  .h = patches.resized.height / config.patch_size,
                  .w = patches.resized.width / config.patch_size};
  const RgbImage resized = resize_bicubic(image, patches.resized);
  patches.content_hash = hash_content(patches.grid, resized);
  patches.pixels = cut_patches(resized, patches.grid, config);
  return patches;
}

}  // namespace glimpse
