#include "runtime/picture_cache.h"

#include <algorithm>

#include "base/check.h"

namespace glimpse {

PictureCache::Entry* PictureCache::find(const Sha256& content) {
  for (Entry& entry : entries_) {
    if (entry.content != content) continue;
    if (entry.references++ == 0) unused_.remove(&entry);
    return &entry;
  }
  return nullptr;
}

bool PictureCache::contains(const Sha256& content) const {
  return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.content == content && entry.is_ready;
  });
}

PictureCache::Entry* PictureCache::reserve(const Sha256& content, int64_t count) {
  check(count > 0 && count <= capacity_, "a picture has more tokens than the visual store");
  for (;;) {
    Position behind;
    const int64_t first = find_gap(count, behind);
    if (first >= 0) {
      return &*entries_.insert(behind, Entry{content, first, count, 1, false});
    }
    if (!evict_longest_unused()) return nullptr;
  }
}

void PictureCache::release(Entry* entry) {
  check(entry->references > 0, "a picture was released more often than it was taken");
  if (--entry->references > 0) return;
  if (entry->is_ready) {
    unused_.push_back(entry);
  } else {
    entries_.erase(position_of(entry));  // abandoned before it was made
  }
}

int64_t PictureCache::used() const {
  int64_t rows = 0;
  for (const Entry& entry : entries_) rows += entry.count;
  return rows;
}

PictureCache::Position PictureCache::position_of(const Entry* entry) {
  const auto position = std::find_if(entries_.begin(), entries_.end(),
                                     [&](const Entry& other) { return &other == entry; });
  check(position != entries_.end(), "an entry of another picture cache");
  return position;
}

int64_t PictureCache::find_gap(int64_t count, Position& behind) {
  int64_t first = 0;
  for (behind = entries_.begin(); behind != entries_.end(); ++behind) {
    if (behind->first - first >= count) return first;
    first = behind->first + behind->count;
  }
  return capacity_ - first >= count ? first : -1;
}

bool PictureCache::evict_longest_unused() {
  if (unused_.empty()) return false;
  entries_.erase(position_of(unused_.front()));
  unused_.pop_front();
  return true;
}

}  // namespace glimpse
