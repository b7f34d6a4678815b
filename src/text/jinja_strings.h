// Python's indexing of text and lists: by code point, from either end, in slices.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "text/sourced_text.h"

namespace glimpse::jinja {

/// Where the characters of a valid UTF-8 text begin.
class CodePoints {
 public:
  explicit CodePoints(std::string_view text);
  [[nodiscard]] int64_t count() const { return count_; }
  /// The byte at which character `i` begins; count() gives the end of the text.
  [[nodiscard]] size_t offset(int64_t i) const {
    return offsets_.empty() ? static_cast<size_t>(i) : offsets_[static_cast<size_t>(i)];
  }

 private:
  int64_t count_ = 0;
  std::vector<size_t> offsets_;  // [count + 1]; empty when every character is one byte
};

struct SliceBounds {
  std::optional<int64_t> start;
  std::optional<int64_t> stop;
  std::optional<int64_t> step;  ///< not zero
};

/// The positions that list[start:stop:step] takes of a list of `size`, in its order.
[[nodiscard]] std::vector<int64_t> slice_indices(const SliceBounds& bounds, int64_t size);
[[nodiscard]] SourcedText slice_text(const SourcedText& text, const SliceBounds& bounds);

}  // namespace glimpse::jinja
