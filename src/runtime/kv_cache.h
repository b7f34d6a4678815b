// Which pages of the KV cache belong to whom. Pages are taken as sequences grow, shared by those
// that begin alike, and stay findable after their last user until the room is needed. Bookkeeping
// only; the engine owns the tensors.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "runtime/sequence.h"

namespace glimpse {

/// Not thread-safe.
class KvCache {
 public:
  explicit KvCache(int64_t num_pages);

  /// The pages that begin with these keys, as many in a row as are there, with one more reference
  /// on each.
  [[nodiscard]] std::vector<PageId> match(std::span<const PageKey> keys);
  /// A page for one sequence to write; the longest unused findable page gives way when none is
  /// free. Empty when all pages are in use.
  [[nodiscard]] std::optional<PageId> take();
  /// The page is full and what `key` says: later sequences may share it. Where an equal page is
  /// known already, that one stays the one to be found.
  void publish(PageId page, const PageKey& key);
  /// Gives up one reference on each. Pages are freed last-to-first, so that the beginning of a
  /// conversation, which most others share, is evicted last.
  void release(std::span<const PageId> pages);

  [[nodiscard]] int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  /// Pages that take() can give: free ones and unreferenced findable ones.
  [[nodiscard]] int64_t num_available() const {
    return static_cast<int64_t>(free_.size() + unused_.size());
  }
  /// Pages that some sequence refers to.
  [[nodiscard]] int64_t num_referenced() const { return num_pages() - num_available(); }
  [[nodiscard]] int references(PageId page) const { return at(page).references; }

 private:
  struct Page {
    int references = 0;
    std::optional<PageKey> key;                // set while findable
    std::list<PageId>::iterator unused_place;  // valid while in unused_
  };
  [[nodiscard]] Page& at(PageId page) { return pages_[static_cast<size_t>(page)]; }
  [[nodiscard]] const Page& at(PageId page) const { return pages_[static_cast<size_t>(page)]; }

  std::vector<Page> pages_;
  std::vector<PageId> free_;
  std::list<PageId> unused_;  // findable, unreferenced, the longest unused first
  std::map<PageKey, PageId> by_key_;
};

}  // namespace glimpse
