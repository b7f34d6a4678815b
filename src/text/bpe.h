// Byte-level BPE proper: a vocabulary of byte strings and ranked merges of id pairs, in two flat
// tables made for loading 150,000 entries of each in milliseconds.
#pragma once

#include <cstdint>
#include <span>
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
  /// find() of a batch of at most kBatch, with the cache misses of all under way at once.
  static constexpr size_t kBatch = 64;
  void find_batch(std::span<const std::string_view> texts, std::span<TokenId> ids) const;
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
  [[nodiscard]] size_t find_slot(std::string_view bytes, uint32_t hash) const;
  void grow(size_t slots);

  std::string arena_;
  std::vector<Span> spans_;      // [size]
  std::vector<uint32_t> slots_;  // tagged ids, see TaggedIndex in bpe.cpp
  size_t count_ = 0;
};

/// Which pair of neighbours becomes which token, and how early.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank = UINT32_MAX;  ///< lower merges first; UINT32_MAX: the pair does not merge
    TokenId result = -1;
  };

  static constexpr size_t kMaxMerges = (1 << 22) - 1;

  /// Room for `merges`, at most kMaxMerges.
  explicit MergeTable(size_t merges = 0);
  /// Adds the merge of the next rank, at most as many as the constructor was told. A repeated pair
  /// takes the later rank.
  void add(TokenId left, TokenId right, TokenId result);
  [[nodiscard]] Merge find(TokenId left, TokenId right) const;
  /// Starts fetching what add() or find() of this pair will touch.
  void prefetch(TokenId left, TokenId right) const;

 private:
  struct Entry {
    TokenId left;
    TokenId right;
    TokenId result;
  };
  [[nodiscard]] size_t find_slot(TokenId left, TokenId right, uint32_t hash) const;

  std::vector<Entry> entries_;   // [merges], by rank
  std::vector<uint32_t> slots_;  // tagged ranks, see TaggedIndex in bpe.cpp
};

/// Replaces `symbols` (one token per byte) by what merging gives: lowest rank first, leftmost first
/// among equals. n log n for long pieces.
void merge_symbols(const MergeTable& merges, std::vector<TokenId>& symbols);

}  // namespace glimpse
