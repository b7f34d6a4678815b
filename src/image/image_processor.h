// From RGB pixels to the patches that the vision tower reads, bit for bit as transformers'
// Qwen2VLImageProcessorFast makes them: smart resize, bicubic with antialias on bytes, normalise,
// and patches in 2x2 merge-block order.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/json.h"
#include "base/sha256.h"
#include "image/rgb_image.h"

namespace glimpse {

/// From preprocessor_config.json or processor_config.json. Areas are in pixels.
struct ImageProcessorConfig {
  int patch_size = 16;
  int temporal_patch_size = 2;
  int merge_size = 2;
  int64_t min_pixels = 65536;
  int64_t max_pixels = 16777216;
  float image_mean[3] = {0.5F, 0.5F, 0.5F};
  float image_std[3] = {0.5F, 0.5F, 0.5F};
  double rescale_factor = 1.0 / 255.0;

  /// Reads the variants of a checkpoint directory: preprocessor_config.json, or image_processor in
  /// processor_config.json; size {shortest_edge, longest_edge} or min_pixels / max_pixels. Without
  /// either file, transformers' defaults. Throws Error(bad_model) or Error(unsupported).
  static ImageProcessorConfig from_directory(const std::filesystem::path& directory);
  /// The same from the object itself.
  static ImageProcessorConfig from_json(const Json& object);
};

/// Size of a picture in patches: temporal slices, rows, columns.
struct PatchGrid {
  int t = 1;
  int h = 0;
  int w = 0;

  [[nodiscard]] int64_t num_patches() const { return int64_t{t} * h * w; }
  bool operator==(const PatchGrid&) const = default;
};

struct PictureSize {
  int height = 0;
  int width = 0;
  bool operator==(const PictureSize&) const = default;
};

/// The size a picture is resized to: both sides multiples of patch_size * merge_size, the area
/// within [min_pixels, max_pixels]. Throws Error(bad_picture) when the aspect ratio exceeds 200.
[[nodiscard]] PictureSize smart_resize(PictureSize original, const ImageProcessorConfig& config);

/// Bicubic (a = -0.5) with antialias on bytes, torch's fixed-point arithmetic.
[[nodiscard]] RgbImage resize_bicubic(const RgbImage& image, PictureSize size);

/// A picture ready for the vision tower.
struct Patches {
  PatchGrid grid;
  /// [num_patches, 3 * temporal * patch * patch] f32, index ((channel * T + t) * P + y) * P + x
  std::vector<float> pixels;
  /// SHA-256 of the grid and the resized bytes: equal hashes mean equal pictures to the model.
  Sha256 content_hash{};
  PictureSize original;
  PictureSize resized;
};

/// Thread-safe.
class ImageProcessor {
 public:
  explicit ImageProcessor(ImageProcessorConfig config) : config_(config) {}

  [[nodiscard]] const ImageProcessorConfig& config() const { return config_; }
  /// Resizes and cuts one picture. `min_pixels` / `max_pixels` of 0 keep the config's. Throws
  /// Error(bad_picture) for the aspect ratio, Error(invalid_argument) for impossible limits.
  [[nodiscard]] Patches process(const RgbImage& image, int64_t min_pixels = 0,
                                int64_t max_pixels = 0) const;

 private:
  ImageProcessorConfig config_;
};

}  // namespace glimpse
