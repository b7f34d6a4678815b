// Positions. A picture's tokens carry (time, row, column) and the text after it goes on behind the
// largest of them, so a position is not a cache index: decoding continues from next_position.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "image/image_processor.h"
#include "model/config.h"

namespace glimpse {

/// Frequency i of a head turns by theta^(-2 i / dim), in float as torch computes it.
[[nodiscard]] std::vector<float> inverse_frequencies(double theta, int64_t dim);

/// Which of (time, height, width) frequency i follows. Interleaved: 1, 4, 7, ... follow height and
/// 2, 5, 8, ... width, each as often as its section says; all others, the last ones included,
/// follow time. Without sections everything follows time.
[[nodiscard]] std::vector<int32_t> rotary_axes(const TextConfig& config);

/// A run of visual tokens: one picture in a sequence.
struct VisualSpan {
  int64_t first = 0;  // index of its first token
  PatchGrid grid;     // in patches, before merging

  [[nodiscard]] int64_t num_tokens(int64_t merge_size) const {
    return grid.num_patches() / (merge_size * merge_size);
  }
};

/// Matches the placeholder tokens of a sequence with the pictures, in order. Throws
/// Error(invalid_argument) when their counts differ.
[[nodiscard]] std::vector<VisualSpan> find_visual_spans(std::span<const int32_t> token_ids,
                                                        int32_t image_token_id,
                                                        std::span<const PatchGrid> grids,
                                                        int64_t merge_size);

struct SequencePositions {
  std::array<std::vector<int32_t>, 3> axes;  // time, height, width; each [num_tokens]
  int32_t next_position = 0;                 // of the next text token, on all three axes

  /// next_position - num_tokens: what transformers calls rope_deltas; 0 or negative.
  [[nodiscard]] int32_t rope_delta() const {
    return next_position - static_cast<int32_t>(axes[0].size());
  }
};

/// `spans` in order of `first`, not overlapping, each of one temporal slice.
[[nodiscard]] SequencePositions sequence_positions(int64_t num_tokens,
                                                   std::span<const VisualSpan> spans,
                                                   int64_t merge_size);

/// Row and column of each patch, in the order in which patches are stored: merge blocks row by row,
/// inside a block row by row, slice after slice.
struct PatchPosition {
  int32_t row;
  int32_t column;
};
[[nodiscard]] std::vector<PatchPosition> patch_positions(const PatchGrid& grid, int64_t merge_size);

/// Bilinear blend of a square table of position embeddings for each patch of a grid: four entries
/// and their weights, corners of the grid on the corners of the table.
struct PositionBlend {
  std::vector<int32_t> indices;  // [num_patches, 4]
  std::vector<float> weights;    // [num_patches, 4]
};
[[nodiscard]] PositionBlend position_blend(const PatchGrid& grid, int64_t merge_size,
                                           int64_t num_position_embeddings);

}  // namespace glimpse
