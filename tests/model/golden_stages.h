// Stage files that transformers wrote (tools/make_golden.py) and how ours are compared with them.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "image/decode.h"
#include "image/image_processor.h"
#include "model/safetensors.h"
#include "paths.h"
#include "test_model.h"

namespace glimpse::testing {

class GoldenStages {
 public:
  explicit GoldenStages(const std::filesystem::path& path) : file_(path) {
    for (const StoredTensor& tensor : parse_safetensors(file_.bytes(), path.filename().string())) {
      tensors_.emplace(tensor.name, tensor);
    }
  }

  [[nodiscard]] bool contains(const std::string& name) const { return tensors_.contains(name); }
  [[nodiscard]] std::span<const float> floats(const std::string& name) const {
    const std::span<const std::byte> bytes = tensors_.at(name).bytes;
    return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
  }
  [[nodiscard]] std::vector<int32_t> integers(const std::string& name) const {
    const std::span<const std::byte> bytes = tensors_.at(name).bytes;
    const auto* values = reinterpret_cast<const int64_t*>(bytes.data());
    return {values, values + bytes.size() / sizeof(int64_t)};
  }
  /// Names of stages: everything in floats.
  [[nodiscard]] std::vector<std::string> stage_names() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) {
      if (tensor.dtype == DType::f32) names.push_back(name);
    }
    return names;
  }
  [[nodiscard]] int64_t row_width(const std::string& name) const {
    return tensors_.at(name).shape.back();
  }
  /// Of all rows of a stage those that the file holds: every row_step-th, back from the last.
  [[nodiscard]] std::vector<float> stored_rows(const std::string& name,
                                               std::span<const float> all) const {
    const auto width = static_cast<size_t>(row_width(name));
    const size_t num_rows = all.size() / width;
    const auto step = static_cast<size_t>(integers("row_step").front());
    std::vector<float> rows;
    for (size_t row = (num_rows - 1) % step; row < num_rows; row += step) {
      const std::span<const float> values = all.subspan(row * width, width);
      rows.insert(rows.end(), values.begin(), values.end());
    }
    return rows;
  }
  /// The file holds the bytes of patches; their frames differ, as a film's do.
  [[nodiscard]] std::vector<TestPicture> pictures(const VisionConfig& vision) const {
    const std::vector<int32_t> grids = integers("image_grid_thw");
    std::span<const std::byte> bytes = tensors_.at("pixel_values").bytes;
    std::vector<TestPicture> result;
    for (size_t i = 0; i < grids.size(); i += 3) {
      const PatchGrid grid{grids[i], grids[i + 1], grids[i + 2]};
      const auto count = static_cast<size_t>(grid.num_patches() * vision.patch_features());
      result.push_back({grid, frames_of(bytes.first(count), grid, vision)});
      bytes = bytes.subspan(count);
    }
    return result;
  }

 private:
  // The inverse of Backend::cut_patches().
  static std::vector<uint8_t> frames_of(std::span<const std::byte> patches, const PatchGrid& grid,
                                        const VisionConfig& vision) {
    const int64_t side = vision.patch_size;
    const int64_t width = grid.w * side;
    const int64_t height = grid.h * side;
    std::vector<uint8_t> frames(patches.size());
    auto from = patches.begin();
    const std::vector<PatchPosition> positions =
        patch_positions(grid, static_cast<int>(vision.spatial_merge_size));
    for (size_t patch = 0; patch < positions.size(); ++patch) {
      const int64_t slice = static_cast<int64_t>(patch) / (int64_t{grid.h} * grid.w);
      for (int64_t channel = 0; channel < 3; ++channel) {
        for (int64_t t = 0; t < vision.temporal_patch_size; ++t) {
          const int64_t frame = slice * vision.temporal_patch_size + t;
          for (int64_t y = 0; y < side; ++y) {
            for (int64_t x = 0; x < side; ++x) {
              const int64_t line = frame * height + positions[patch].row * side + y;
              const int64_t pixel = line * width + positions[patch].column * side + x;
              frames[static_cast<size_t>(pixel * 3 + channel)] = static_cast<uint8_t>(*from++);
            }
          }
        }
      }
    }
    return frames;
  }

  MappedFile file_;
  std::map<std::string, StoredTensor> tensors_;
};

/// A golden picture file as the checkpoint's processor prepares it.
inline TestPicture prepare_test_picture(const std::filesystem::path& checkpoint,
                                        const std::string& name) {
  const MappedFile file(golden_dir() / "demo" / "pictures" / name);
  const ImageProcessor processor(ImageProcessorConfig::from_directory(checkpoint));
  ProcessedPicture picture = processor.process(decode_picture(file.bytes(), name));
  return {picture.grid, std::move(picture.pixels)};
}

/// Collects what a pass traces, under the names of the stage files.
class StageRecorder {
 public:
  explicit StageRecorder(Backend& backend) : backend_(backend) {}

  [[nodiscard]] TraceFunction trace() {
    return [this](std::string_view name, int64_t index, const Tensor& value) {
      record(file_name(std::string(name), index), value);
    };
  }
  /// Values of the same stage follow one another: pictures, chunks.
  void record(const std::string& name, const Tensor& value) {
    const std::vector<float> values = download_floats(backend_, value);
    std::vector<float>& stage = stages_[name];
    stage.insert(stage.end(), values.begin(), values.end());
  }
  [[nodiscard]] const std::map<std::string, std::vector<float>>& stages() const { return stages_; }

 private:
  static std::string file_name(std::string name, int64_t index) {
    if (index < 0) return name;
    const std::string suffix = ".after_deepstack";
    if (!name.ends_with(suffix)) return name + "." + std::to_string(index);
    return name.substr(0, name.size() - suffix.size()) + "." + std::to_string(index) + suffix;
  }

  Backend& backend_;
  std::map<std::string, std::vector<float>> stages_;
};

/// max |ours - golden| / max |golden|.
inline double relative_error(std::span<const float> ours, std::span<const float> golden) {
  EXPECT_EQ(ours.size(), golden.size());
  double difference = 0;
  double largest = 0;
  for (size_t i = 0; i < std::min(ours.size(), golden.size()); ++i) {
    const double d = std::abs(double{ours[i]} - double{golden[i]});
    difference = std::isnan(d) ? INFINITY : std::max(difference, d);
    largest = std::max(largest, std::abs(double{golden[i]}));
  }
  return difference / largest;
}

/// |ours - golden| / |golden|, Euclidean: a few outliers do not hide what the rest is like.
inline double relative_l2(std::span<const float> ours, std::span<const float> golden) {
  EXPECT_EQ(ours.size(), golden.size());
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < std::min(ours.size(), golden.size()); ++i) {
    difference += std::pow(double{ours[i]} - double{golden[i]}, 2);
    norm += std::pow(double{golden[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace glimpse::testing
