// From RGB pixels to those that the vision tower reads, bit for bit as transformers'
// Qwen2VLImageProcessorFast makes them: smart resize, bicubic with antialias on bytes, and the
// table that normalises. Backend::cut_patches() does the rest where the tower is: bytes are a
// quarter of what their floats take, and a still's two frames are one.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/json.h"
#include "base/sha256.h"
#include "base/worker_pool.h"
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

/// Bicubic (a = -0.5) with antialias on bytes, torch's fixed-point arithmetic. Idle threads of
/// `helpers`, where given, share the work.
[[nodiscard]] RgbImage resize_bicubic(RgbImage image, PictureSize size,
                                      WorkerPool* helpers = nullptr);

/// What each byte becomes, by channel: [3, 256], rescaled and normalised.
inline constexpr int64_t kPixelValues = 256;
inline constexpr int64_t kPixelTableSize = 3 * kPixelValues;
using PixelTable = std::array<float, kPixelTableSize>;
[[nodiscard]] PixelTable make_pixel_table(const ImageProcessorConfig& config);

/// A picture ready for the vision tower.
struct ProcessedPicture {
  PatchGrid grid;
  /// [height, width, 3]: RGB of the resized picture
  std::vector<uint8_t> pixels;
  /// SHA-256 of the grid and the SHA-256 of each piece of the pixels: equal hashes mean equal
  /// pictures to the model, also where somebody would have them collide.
  Sha256 content_hash{};
  PictureSize original;
  PictureSize resized;
};

/// Thread-safe.
class ImageProcessor {
 public:
  explicit ImageProcessor(ImageProcessorConfig config) : config_(config) {}

  [[nodiscard]] const ImageProcessorConfig& config() const { return config_; }
  /// The size process() would give. `min_pixels` / `max_pixels` of 0 keep the config's. Throws
  /// Error(bad_picture) for the aspect ratio, Error(invalid_argument) for impossible limits.
  [[nodiscard]] PictureSize resized_size(PictureSize original, int64_t min_pixels = 0,
                                         int64_t max_pixels = 0) const;
  /// Resizes and hashes one picture. Idle threads of `helpers`, where given, share the work.
  [[nodiscard]] ProcessedPicture process(RgbImage image, int64_t min_pixels = 0,
                                         int64_t max_pixels = 0,
                                         WorkerPool* helpers = nullptr) const;

 private:
  ImageProcessorConfig config_;
};

}  // namespace glimpse
