#include "server/cors.h"

#include <fmt/format.h>

namespace glimpse {

void CorsList::decorate(std::string_view origin, HttpResponse& response) const {
  if (origins_.empty()) return;
  const auto allow = [&](const std::string& allowed) {
    response.headers.emplace_back("Access-Control-Allow-Origin", allowed);
    response.headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
  };
  bool allows_any = false;
  for (const std::string& listed : origins_) {
    if (listed == "*") allows_any = true;
  }
  if (allows_any) {
    if (!origin.empty()) allow("*");
    return;
  }
  // The answer depends on who asks, which caches between must know of refused ones too.
  response.headers.emplace_back("Vary", "Origin");
  if (origin.empty()) return;
  for (const std::string& listed : origins_) {
    if (listed == origin) return allow(listed);
  }
}

std::string allowed_methods(std::string_view method) {
  return fmt::format("{}{}, OPTIONS", method, method == "GET" ? ", HEAD" : "");
}

HttpResponse preflight_answer(std::string_view method) {
  HttpResponse response{.status = 204, .content_type = ""};
  response.headers = {{"Allow", allowed_methods(method)},
                      {"Access-Control-Allow-Methods", std::string(method)},
                      {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id"},
                      {"Access-Control-Max-Age", "600"}};
  return response;
}

}  // namespace glimpse
