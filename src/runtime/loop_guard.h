// Notices an answer whose tail repeats itself, as small models do at temperature 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "text/tokenizer.h"

namespace glimpse {

/// One answer. Not thread-safe.
class LoopGuard {
 public:
  /// The longest repeating piece that is looked for, in tokens.
  static constexpr size_t kMaxPeriod = 256;
  /// A tail counts as a loop when it is at least this long ...
  static constexpr size_t kMinLength = 96;
  /// ... and holds the piece at least this often: three equal rows of a table are no loop.
  static constexpr size_t kMinRepeats = 4;

  LoopGuard() : run_(kMaxPeriod + 1) {}

  /// True when the answer, this token included, ends in a loop.
  [[nodiscard]] bool push(TokenId token);

 private:
  std::vector<TokenId> tokens_;
  std::vector<size_t> run_;  // [period]: newest tokens that equal the one a period before
};

}  // namespace glimpse
