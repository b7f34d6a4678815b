// Byte-level BPE proper: a vocabulary of byte strings and ranked merges of id pairs, in two flat
// tables made for loading 150,000 entries of each in milliseconds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace glimpse {

/// Byte strings by id and ids by byte string. Filled once by add(), then immutable.
class Vocabulary {
 public:
  static constexpr TokenId kMaxId = (1 << 22) - 1;

  /// Makes room for `entries` more strings of `bytes` in sum.
  void reserve(size_t entries, size_t bytes);
  enum class Added : uint8_t { ok, duplicate_id, duplicate_text };
  /// `id` must lie in [0, kMaxId].
  [[nodiscard]] Added add(std::string_view bytes, TokenId id);

  /// -1 when there is none.
  [[nodiscard]] TokenId find(std::string_view bytes) const;
  /// Empty for an unknown id.
  [[nodiscard]] std::string_view bytes(TokenId id) const {
    if (id < 0 || id >= size()) return {};
    const Span span = spans_[static_cast<size_t>(id)];
    return {arena_.data() + span.begin, span.length};
  }
  /// One past the largest id.
  [[nodiscard]] TokenId size() const { return static_cast<TokenId>(spans_.size()); }

 private:
  struct Span {
    uint32_t begin = 0;
    uint32_t length = 0;
  };
  struct Slot {
    uint32_t hash = 0;
    TokenId id = -1;
  };
  void rehash(size_t slots);

  std::string arena_;
  std::vector<Span> spans_;  // [size]
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  size_t count_ = 0;
};

/// Which pair of neighbours becomes which token, and how early.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank = UINT32_MAX;  ///< lower merges first; UINT32_MAX: the pair does not merge
    TokenId result = -1;
  };

  explicit MergeTable(size_t merges = 0);
  /// At most as many as the constructor was told. A repeated pair takes the later rank.
  void add(TokenId left, TokenId right, Merge merge);
  [[nodiscard]] Merge find(TokenId left, TokenId right) const;

 private:
  struct Slot {
    uint64_t key = UINT64_MAX;
    Merge merge;
  };
  [[nodiscard]] size_t slot_of(uint64_t key) const;

  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

/// Replaces `symbols` (one token per byte) by what merging gives: lowest rank first, leftmost first
/// among equals. n log n for long pieces.
void merge_symbols(const MergeTable& merges, std::vector<TokenId>& symbols);

}  // namespace glimpse
