// One HTTP/1.1 call to another machine, plain or TLS, by Boost.Beast: `glimpse ask` talks to a
// server with it, and the server fetches remote pictures with it. Blocking, with a deadline.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/asio/ip/address.hpp>

namespace glimpse {

/// http://host:port/target, taken apart.
struct HttpUrl {
  bool is_secure = false;
  std::string host;  ///< lower case; IPv6 without brackets
  uint16_t port = 80;
  std::string target = "/";  ///< path and query

  [[nodiscard]] uint16_t default_port() const { return is_secure ? 443 : 80; }
  /// "host" or "host:port", as the Host header has it.
  [[nodiscard]] std::string authority() const;
};

/// Throws Error(invalid_argument): not http or https, a user name, spaces, a port that is none.
[[nodiscard]] HttpUrl parse_http_url(std::string_view text);
/// Where a Location header leads from `base`: a whole URL, //host/path or /path.
[[nodiscard]] HttpUrl redirected(const HttpUrl& base, std::string_view location);

struct HttpCall {
  std::string method = "GET";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds timeout{0};  ///< of the whole call; 0: none once connected
  /// Which of the host's addresses may be connected to; empty: all.
  std::function<bool(const boost::asio::ip::address&)> allows;
};

struct HttpReply {
  int status = 0;
  std::string location;
  std::string content_type;
};

/// Makes one call; redirects are the caller's. `on_body` gets the body piece by piece and may throw
/// to end the call. Throws Error: not_found when nobody answers or no address is allowed,
/// overloaded when the time is up. Thread-safe.
HttpReply make_http_call(const HttpUrl& url, const HttpCall& call,
                         const std::function<void(const HttpReply&, std::string_view)>& on_body);

}  // namespace glimpse
