// What constrained decoding plugs into: a grammar that says which tokens may come next.
#pragma once

#include <cstdint>
#include <span>

#include "text/tokenizer.h"

namespace glimpse {

/// The state of one answer. Used on the engine's thread only.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  /// Bit t % 32 of word t / 32 allows token t; [ceil(vocab / 32)] words, valid until the next call.
  /// At least one bit is set: the end-of-turn token once the answer is complete. Empty: everything
  /// is allowed. Throws Error when the answer cannot go on.
  [[nodiscard]] virtual std::span<const uint32_t> mask() = 0;
  /// The token was chosen; it was allowed.
  virtual void accept(TokenId token) = 0;
};

}  // namespace glimpse
