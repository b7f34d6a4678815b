#include "runtime/loop_guard.h"

#include <algorithm>

namespace glimpse {

bool LoopGuard::push(TokenId token) {
  const size_t count = tokens_.size();
  bool loops = false;
  for (size_t period = 1; period <= std::min(count, kMaxPeriod); ++period) {
    size_t& run = run_[period];
    run = tokens_[count - period] == token ? run + 1 : 0;
    loops |= run + period >= std::max(kMinLength, kMinRepeats * period);
  }
  tokens_.push_back(token);
  return loops;
}

}  // namespace glimpse
