#include "text/bpe.h"

#include <algorithm>
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

uint64_t pair_key(TokenId left, TokenId right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
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
  rehash(std::bit_ceil(std::max<size_t>(16, 2 * (count_ + entries))));
}

void Vocabulary::rehash(size_t slots) {
  if (slots <= slots_.size()) return;
  std::vector<Slot> old(slots);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.id < 0) continue;
    size_t at = slot.hash & (slots - 1);
    while (slots_[at].id >= 0) at = (at + 1) & (slots - 1);
    slots_[at] = slot;
  }
}

Vocabulary::Added Vocabulary::add(std::string_view bytes, TokenId id) {
  check(id >= 0 && id <= kMaxId, "a token id is within the vocabulary's limit");
  if (2 * (count_ + 1) > slots_.size()) rehash(std::max<size_t>(16, 2 * slots_.size()));
  const uint32_t hash = hash_bytes(bytes);
  size_t at = hash & (slots_.size() - 1);
  for (; slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].hash == hash && this->bytes(slots_[at].id) == bytes) return Added::duplicate_text;
  }
  const auto index = static_cast<size_t>(id);
  if (index >= spans_.size()) spans_.resize(index + 1);
  if (spans_[index].length != 0) return Added::duplicate_id;
  spans_[index] = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(bytes.size())};
  arena_.append(bytes);
  slots_[at] = {hash, id};
  ++count_;
  return Added::ok;
}

TokenId Vocabulary::find(std::string_view bytes) const {
  if (slots_.empty()) return -1;
  const uint32_t hash = hash_bytes(bytes);
  for (size_t at = hash & (slots_.size() - 1); slots_[at].id >= 0;
       at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].hash == hash && this->bytes(slots_[at].id) == bytes) return slots_[at].id;
  }
  return -1;
}

MergeTable::MergeTable(size_t merges) : slots_(std::bit_ceil(2 * merges + 2)) {}

size_t MergeTable::slot_of(uint64_t key) const {
  const size_t mask = slots_.size() - 1;
  size_t at = mix(mix(key)) & mask;
  while (slots_[at].key != key && slots_[at].key != UINT64_MAX) at = (at + 1) & mask;
  return at;
}

void MergeTable::add(TokenId left, TokenId right, Merge merge) {
  const uint64_t key = pair_key(left, right);
  slots_[slot_of(key)] = {key, merge};
}

MergeTable::Merge MergeTable::find(TokenId left, TokenId right) const {
  return slots_[slot_of(pair_key(left, right))].merge;
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
