// Which pages of other origins may read answers (CORS), as headers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace glimpse {

/// Immutable; thread-safe.
class CorsList {
 public:
  /// "*" stands for any origin; an empty list allows none.
  explicit CorsList(std::vector<std::string> origins) : origins_(std::move(origins)) {}

  /// Adds what lets a page of `origin` read the answer; nothing where it may not.
  void decorate(std::string_view origin, HttpResponse& response) const;

 private:
  std::vector<std::string> origins_;
};

/// The header Allow of a route that takes `method`.
[[nodiscard]] std::string allowed_methods(std::string_view method);

/// What a browser asks with OPTIONS before it sends a request: how a route may be called. Who may
/// call it says CorsList::decorate().
[[nodiscard]] HttpResponse preflight_answer(std::string_view method);

}  // namespace glimpse
