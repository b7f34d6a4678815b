// The API keys of a server. Which of them a client sent, how much of one is right and how long it
// is cannot be told from the time the answer takes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"

namespace glimpse {

/// Immutable; thread-safe. Keeps digests only.
class ApiKeys {
 public:
  /// Without keys nobody is asked for one.
  explicit ApiKeys(const std::vector<std::string>& keys);

  [[nodiscard]] bool are_needed() const { return !digests_.empty(); }
  /// Whether the value of a request's Authorization header lets it in.
  [[nodiscard]] bool accept(std::string_view authorization) const;

 private:
  std::vector<Sha256> digests_;
};

/// Looks at every byte, whatever the first ones say.
[[nodiscard]] bool equal_in_constant_time(const Sha256& a, const Sha256& b);

}  // namespace glimpse
