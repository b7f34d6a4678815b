#include "runtime/kv_cache.h"

#include "base/check.h"

namespace glimpse {

KvCache::KvCache(int64_t num_pages) : pages_(static_cast<size_t>(num_pages)) {
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<PageId>(page));
}

std::vector<PageId> KvCache::match(std::span<const PageKey> keys) {
  std::vector<PageId> pages;
  for (const PageKey& key : keys) {
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) break;
    Page& page = at(found->second);
    if (page.references++ == 0) unused_.erase(page.unused_place);
    pages.push_back(found->second);
  }
  return pages;
}

std::optional<PageId> KvCache::take() {
  PageId page = -1;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else if (!unused_.empty()) {
    page = unused_.front();
    unused_.pop_front();
    by_key_.erase(*at(page).key);
    at(page).key.reset();
  } else {
    return std::nullopt;
  }
  at(page).references = 1;
  return page;
}

void KvCache::publish(PageId page, const PageKey& key) {
  check(at(page).references > 0, "an unused page was published");
  if (at(page).key || !by_key_.try_emplace(key, page).second) return;
  at(page).key = key;
}

void KvCache::release(std::span<const PageId> pages) {
  for (auto id = pages.rbegin(); id != pages.rend(); ++id) {
    Page& page = at(*id);
    check(page.references > 0, "a page was released more often than it was taken");
    if (--page.references > 0) continue;
    if (page.key) {
      page.unused_place = unused_.insert(unused_.end(), *id);
    } else {
      free_.push_back(*id);
    }
  }
}

}  // namespace glimpse
