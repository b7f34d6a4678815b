// How many bytes of request bodies the server holds at once, all connections together.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace glimpse {

/// Thread-safe.
class ByteBudget {
 public:
  explicit ByteBudget(uint64_t limit) : limit_(limit) {}

  [[nodiscard]] uint64_t limit() const { return limit_; }
  [[nodiscard]] uint64_t used() const { return used_; }
  /// A guess: others may take the room first.
  [[nodiscard]] bool has_room(uint64_t bytes) const {
    const uint64_t used = used_;
    return used <= limit_ && bytes <= limit_ - used;
  }

 private:
  friend class BudgetShare;

  uint64_t limit_;
  std::atomic<uint64_t> used_ = 0;
};

/// What one request holds of a budget; given back when it ends. Not thread-safe.
class BudgetShare {
 public:
  /// `budget` may be null: then everything fits.
  explicit BudgetShare(std::shared_ptr<ByteBudget> budget) : budget_(std::move(budget)) {}
  ~BudgetShare() { give_back(); }
  BudgetShare(const BudgetShare&) = delete;
  BudgetShare& operator=(const BudgetShare&) = delete;

  /// Holds `bytes` in all from now on. False, and nothing changed, when they do not fit.
  [[nodiscard]] bool grow_to(uint64_t bytes) {
    if (bytes <= held_ || !budget_) return true;
    const uint64_t more = bytes - held_;
    uint64_t used = budget_->used_;
    do {
      if (used > budget_->limit_ || more > budget_->limit_ - used) return false;
    } while (!budget_->used_.compare_exchange_weak(used, used + more));
    held_ = bytes;
    return true;
  }

  void give_back() {
    if (budget_) budget_->used_ -= held_;
    held_ = 0;
  }

 private:
  // The connections and the server that counts for them.
  std::shared_ptr<ByteBudget> budget_;
  uint64_t held_ = 0;
};

}  // namespace glimpse
