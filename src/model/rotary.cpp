#include "model/rotary.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace glimpse {
namespace {

// linspace(first = 0, last, count)[i] in float, as torch does it: from the near end, so that both
// ends are exact.
float linspace(float last, int64_t count, int64_t i) {
  if (count == 1) return 0;
  const float step = last / static_cast<float>(count - 1);
  if (i < count / 2) return step * static_cast<float>(i);
  return last - step * static_cast<float>(count - 1 - i);
}

// Where a coordinate falls between two entries of one side of the table.
struct Between {
  int32_t low;
  int32_t high;
  float fraction;  // of the way from low to high
};

Between between(int64_t side, int64_t count, int64_t i) {
  const float place = linspace(static_cast<float>(side - 1), count, i);
  const auto low = static_cast<int32_t>(place);
  const auto high = std::min(low + 1, static_cast<int32_t>(side) - 1);
  return {low, high, place - static_cast<float>(low)};
}

}  // namespace

std::vector<float> inverse_frequencies(double theta, int64_t dim) {
  std::vector<float> result(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < result.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    result[i] = 1.0F / std::pow(static_cast<float>(theta), exponent);
  }
  return result;
}

std::vector<int32_t> rotary_axes(const TextConfig& config) {
  std::vector<int32_t> axes(static_cast<size_t>(config.head_dim / 2), 0);
  if (!config.mrope_section) return axes;
  for (int32_t axis = 1; axis < 3; ++axis) {
    const int64_t end = 3 * (*config.mrope_section)[static_cast<size_t>(axis)];
    for (int64_t i = axis; i < std::min(end, config.head_dim / 2); i += 3) {
      axes[static_cast<size_t>(i)] = axis;
    }
  }
  return axes;
}

std::vector<VisualSpan> find_visual_spans(std::span<const int32_t> token_ids,
                                          int32_t image_token_id, std::span<const PatchGrid> grids,
                                          int64_t merge_size) {
  std::vector<VisualSpan> spans;
  const auto num_tokens = static_cast<int64_t>(token_ids.size());
  int64_t num_placeholders = 0;
  int64_t next = 0;
  for (int64_t i = 0; i < num_tokens; ++i) {
    if (token_ids[static_cast<size_t>(i)] != image_token_id) continue;
    ++num_placeholders;
    if (i < next || spans.size() == grids.size()) continue;
    spans.push_back({i, grids[spans.size()]});
    next = i + spans.back().num_tokens(merge_size);
  }
  int64_t expected = 0;
  for (const PatchGrid& grid : grids) expected += grid.num_patches() / (merge_size * merge_size);
  const bool are_filled = std::all_of(spans.begin(), spans.end(), [&](const VisualSpan& span) {
    const int64_t last = span.first + span.num_tokens(merge_size);
    return last <= num_tokens &&
           std::all_of(token_ids.begin() + span.first, token_ids.begin() + last,
                       [&](int32_t id) { return id == image_token_id; });
  });
  if (spans.size() != grids.size() || num_placeholders != expected || !are_filled) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("the prompt has {} picture placeholders, its {} pictures need {}",
                    num_placeholders, grids.size(), expected),
        "every picture needs exactly as many placeholders in a row as it has visual tokens");
  }
  return spans;
}

SequencePositions sequence_positions(int64_t num_tokens, std::span<const VisualSpan> spans,
                                     int64_t merge_size) {
  SequencePositions result;
  for (auto& axis : result.axes) axis.reserve(static_cast<size_t>(num_tokens));
  int32_t next = 0;
  const auto append = [&](int32_t time, int32_t height, int32_t width) {
    result.axes[0].push_back(time);
    result.axes[1].push_back(height);
    result.axes[2].push_back(width);
  };
  const auto append_text_until = [&](int64_t end) {
    check(static_cast<int64_t>(result.axes[0].size()) <= end, "pictures overlap in the sequence");
    while (static_cast<int64_t>(result.axes[0].size()) < end) {
      append(next, next, next);
      ++next;
    }
  };
  for (const VisualSpan& span : spans) {
    check(span.grid.t == 1, "one run of visual tokens is one temporal slice");
    append_text_until(span.first);
    const auto merge = static_cast<int32_t>(merge_size);
    const int32_t rows = span.grid.h / merge;
    const int32_t columns = span.grid.w / merge;
    for (int32_t row = 0; row < rows; ++row) {
      for (int32_t column = 0; column < columns; ++column) append(next, next + row, next + column);
    }
    next += std::max(rows, columns);
  }
  append_text_until(num_tokens);
  check(static_cast<int64_t>(result.axes[0].size()) == num_tokens, "a picture leaves the sequence");
  result.next_position = next;
  return result;
}

std::vector<PatchPosition> patch_positions(const PatchGrid& grid, int64_t merge_size) {
  const auto merge = static_cast<int32_t>(merge_size);
  check(grid.h % merge == 0 && grid.w % merge == 0, "a patch grid holds whole merge blocks");
  std::vector<PatchPosition> positions;
  positions.reserve(static_cast<size_t>(grid.num_patches()));
  for (int32_t slice = 0; slice < grid.t; ++slice) {
    for (int32_t block_row = 0; block_row < grid.h; block_row += merge) {
      for (int32_t block_column = 0; block_column < grid.w; block_column += merge) {
        for (int32_t i = 0; i < merge * merge; ++i) {
          positions.push_back({block_row + i / merge, block_column + i % merge});
        }
      }
    }
  }
  return positions;
}

PositionBlend position_blend(const PatchGrid& grid, int64_t merge_size,
                             int64_t num_position_embeddings) {
  const auto side =
      static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(num_position_embeddings))));
  PositionBlend blend;
  blend.indices.reserve(static_cast<size_t>(4 * grid.num_patches()));
  blend.weights.reserve(static_cast<size_t>(4 * grid.num_patches()));
  for (const PatchPosition& patch : patch_positions(grid, merge_size)) {
    const Between y = between(side, grid.h, patch.row);
    const Between x = between(side, grid.w, patch.column);
    const auto stride = static_cast<int32_t>(side);
    blend.indices.insert(blend.indices.end(), {y.low * stride + x.low, y.low * stride + x.high,
                                               y.high * stride + x.low, y.high * stride + x.high});
    blend.weights.insert(blend.weights.end(),
                         {(1 - y.fraction) * (1 - x.fraction), (1 - y.fraction) * x.fraction,
                          y.fraction * (1 - x.fraction), y.fraction * x.fraction});
  }
  return blend;
}

}  // namespace glimpse
