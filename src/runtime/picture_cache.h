// Which pictures' embeddings are in the visual store, and where: rows of one fixed table, taken
// first-fit, given up by the longest unused. Bookkeeping only; the engine owns the tensors.
#pragma once

#include <cstdint>
#include <list>

#include "base/sha256.h"

namespace glimpse {

/// Not thread-safe.
class PictureCache {
 public:
  struct Entry {
    Sha256 content{};
    int64_t first = 0;  // row of the store
    int64_t count = 0;  // rows, one a visual token
    int references = 0;
    bool is_ready = false;  // the vision tower has written the rows
  };

  explicit PictureCache(int64_t capacity) : capacity_(capacity) {}

  /// The entry of a picture, ready or in the making, with one more reference; nullptr when there
  /// is none.
  [[nodiscard]] Entry* find(const Sha256& content);
  /// Room for a picture that find() did not know, with one reference and not ready. Unreferenced
  /// entries give way, the longest unused first. nullptr when what is in use leaves no gap.
  [[nodiscard]] Entry* reserve(const Sha256& content, int64_t count);
  /// Gives up one reference. A ready entry stays until its rows are wanted.
  void release(Entry* entry);

  [[nodiscard]] int64_t capacity() const { return capacity_; }
  [[nodiscard]] int64_t used() const;
  [[nodiscard]] bool contains(const Sha256& content) const;

 private:
  using Position = std::list<Entry>::iterator;

  [[nodiscard]] Position position_of(const Entry* entry);
  /// First row of a gap of `count` rows, and the entry behind it; -1 when there is none.
  [[nodiscard]] int64_t find_gap(int64_t count, Position& behind);
  bool evict_longest_unused();

  int64_t capacity_;
  std::list<Entry> entries_;  // by `first`; pointers to them stay valid
  // Unreferenced entries, the longest unused first.
  std::list<Entry*> unused_;
};

}  // namespace glimpse
