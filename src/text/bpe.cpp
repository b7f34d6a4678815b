#include "text/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <queue>

#include "base/check.h"

namespace glimpse {
namespace {

// The constants only have to be odd and without pattern.
constexpr uint64_t kMix = 0x9E3779B97F4A7C15U;

uint64_t mix(uint64_t x) {
  x *= kMix;
  return x ^ (x >> 32);
}

uint32_t hash_bytes(std::string_view bytes) {
  uint64_t hash = bytes.size();
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, 8);
    hash = mix(hash ^ word);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, bytes.data() + at, bytes.size() - at);
  return static_cast<uint32_t>(mix(mix(hash ^ tail)));
}

uint32_t hash_pair(TokenId left, TokenId right) {
  const uint64_t key = (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
  return static_cast<uint32_t>(mix(mix(key)));
}

/// A slot of either hash table: 22 bits of index plus one and 10 bits of hash, so that a table of
/// 150,000 entries is one megabyte and stays in the second-level cache while it is filled, and a
/// lookup in vain seldom touches an entry. Zero is empty. Tables are open-addressed, a power of two
/// in size and at most three quarters full.
struct TaggedIndex {
  static constexpr uint32_t kTagMask = 0xFFC00000U;
  static uint32_t make(uint32_t hash, uint32_t index) { return (hash & kTagMask) | (index + 1); }
  static bool same_tag(uint32_t slot, uint32_t hash) { return ((slot ^ hash) & kTagMask) == 0; }
  static uint32_t index(uint32_t slot) { return (slot & ~kTagMask) - 1; }
};

size_t slots_for(size_t entries) {
  return std::bit_ceil(std::max<size_t>(16, entries * 4 / 3 + 1));
}

/// For pieces of a word's length: looks at every pair again after each merge.
void merge_short(const MergeTable& merges, std::vector<TokenId>& symbols) {
  while (symbols.size() > 1) {
    MergeTable::Merge best;
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const MergeTable::Merge merge = merges.find(symbols[i], symbols[i + 1]);
      if (merge.rank < best.rank) {
        best = merge;
        best_at = i;
      }
    }
    if (best.result < 0) return;
    symbols[best_at] = best.result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
}

struct Candidate {
  uint32_t rank;
  uint32_t left;  // index of the left symbol
  TokenId left_id;
  TokenId right_id;  // with left_id: what the pair was when it was queued
  TokenId result;

  // priority_queue gives its largest element: the lowest rank, then the leftmost.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

/// For long pieces: a linked list of symbols and a queue of candidate merges; entries that a
/// neighbour's merge made stale are recognised by their ids when they come up.
void merge_long(const MergeTable& merges, std::vector<TokenId>& symbols) {
  constexpr uint32_t kNone = UINT32_MAX;
  const auto count = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t> next(count);
  std::vector<uint32_t> previous(count);
  for (uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1 < count ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
  }
  std::priority_queue<Candidate> queue;
  const auto offer = [&](uint32_t left) {
    if (left == kNone || next[left] == kNone) return;
    const TokenId left_id = symbols[left];
    const TokenId right_id = symbols[next[left]];
    const MergeTable::Merge merge = merges.find(left_id, right_id);
    if (merge.result >= 0) queue.push({merge.rank, left, left_id, right_id, merge.result});
  };
  for (uint32_t i = 0; i + 1 < count; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    const uint32_t right = next[best.left];
    if (right == kNone || symbols[best.left] != best.left_id || symbols[right] != best.right_id) {
      continue;
    }
    symbols[best.left] = best.result;
    symbols[right] = -1;
    next[best.left] = next[right];
    if (next[right] != kNone) previous[next[right]] = best.left;
    offer(previous[best.left]);
    offer(best.left);
  }
  std::erase(symbols, -1);
}

}  // namespace

void Vocabulary::reserve(size_t entries, size_t bytes) {
  arena_.reserve(arena_.size() + bytes);
  spans_.reserve(spans_.size() + entries);
  grow(slots_for(count_ + entries));
}

void Vocabulary::grow(size_t slots) {
  if (slots <= slots_.size()) return;
  std::vector<uint32_t> old(slots);
  old.swap(slots_);
  for (const uint32_t slot : old) {
    if (slot == 0) continue;
    const uint32_t hash = hash_bytes(bytes(static_cast<TokenId>(TaggedIndex::index(slot))));
    size_t at = hash & (slots - 1);
    while (slots_[at] != 0) at = (at + 1) & (slots - 1);
    slots_[at] = slot;
  }
}

size_t Vocabulary::find_slot(std::string_view bytes, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  for (; slots_[at] != 0; at = (at + 1) & mask) {
    if (!TaggedIndex::same_tag(slots_[at], hash)) continue;
    if (this->bytes(static_cast<TokenId>(TaggedIndex::index(slots_[at]))) == bytes) break;
  }
  return at;
}

Vocabulary::Added Vocabulary::add(std::string_view bytes, TokenId id) {
  check(id >= 0 && id <= kMaxId, "a token id is within the vocabulary's limit");
  grow(slots_for(count_ + 1));
  const uint32_t hash = hash_bytes(bytes);
  const size_t slot = find_slot(bytes, hash);
  if (slots_[slot] != 0) return Added::duplicate_text;
  const auto index = static_cast<size_t>(id);
  if (index >= spans_.size()) spans_.resize(index + 1);
  if (spans_[index].length != 0) return Added::duplicate_id;
  spans_[index] = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(bytes.size())};
  arena_.append(bytes);
  slots_[slot] = TaggedIndex::make(hash, static_cast<uint32_t>(id));
  ++count_;
  return Added::ok;
}

TokenId Vocabulary::find(std::string_view bytes) const {
  if (slots_.empty()) return -1;
  const uint32_t slot = slots_[find_slot(bytes, hash_bytes(bytes))];
  return slot == 0 ? -1 : static_cast<TokenId>(TaggedIndex::index(slot));
}

void Vocabulary::find_batch(std::span<const std::string_view> texts, std::span<TokenId> ids) const {
  check(texts.size() <= kBatch && ids.size() == texts.size() && !slots_.empty(),
        "a batch fits its buffers");
  std::array<uint32_t, kBatch> hashes{};
  for (size_t i = 0; i < texts.size(); ++i) {
    hashes[i] = hash_bytes(texts[i]);
    __builtin_prefetch(&slots_[hashes[i] & (slots_.size() - 1)]);
  }
  const auto likely_id = [&](size_t i) {
    const uint32_t slot = slots_[hashes[i] & (slots_.size() - 1)];
    return slot == 0 ? size_t{0} : size_t{TaggedIndex::index(slot)};
  };
  for (size_t i = 0; i < texts.size(); ++i) __builtin_prefetch(&spans_[likely_id(i)]);
  for (size_t i = 0; i < texts.size(); ++i) {
    __builtin_prefetch(arena_.data() + spans_[likely_id(i)].begin);
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    const uint32_t slot = slots_[find_slot(texts[i], hashes[i])];
    ids[i] = slot == 0 ? -1 : static_cast<TokenId>(TaggedIndex::index(slot));
  }
}

MergeTable::MergeTable(size_t merges) : slots_(slots_for(merges)) {
  check(merges <= kMaxMerges, "a rank fits its slot");
  entries_.reserve(merges);
}

size_t MergeTable::find_slot(TokenId left, TokenId right, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  for (; slots_[at] != 0; at = (at + 1) & mask) {
    if (!TaggedIndex::same_tag(slots_[at], hash)) continue;
    const Entry& entry = entries_[TaggedIndex::index(slots_[at])];
    if (entry.left == left && entry.right == right) break;
  }
  return at;
}

void MergeTable::prefetch(TokenId left, TokenId right) const {
  __builtin_prefetch(&slots_[hash_pair(left, right) & (slots_.size() - 1)]);
}

void MergeTable::add(TokenId left, TokenId right, TokenId result) {
  check(entries_.size() < entries_.capacity(), "no more merges than announced");
  const uint32_t hash = hash_pair(left, right);
  slots_[find_slot(left, right, hash)] =
      TaggedIndex::make(hash, static_cast<uint32_t>(entries_.size()));
  entries_.push_back({left, right, result});
}

MergeTable::Merge MergeTable::find(TokenId left, TokenId right) const {
  const uint32_t slot = slots_[find_slot(left, right, hash_pair(left, right))];
  if (slot == 0) return {};
  const uint32_t rank = TaggedIndex::index(slot);
  return {rank, entries_[rank].result};
}

void merge_symbols(const MergeTable& merges, std::vector<TokenId>& symbols) {
  constexpr size_t kShort = 24;  // symbols; the queue is slower up to about here
  if (symbols.size() <= kShort) {
    merge_short(merges, symbols);
  } else {
    merge_long(merges, symbols);
  }
}

}  // namespace glimpse
