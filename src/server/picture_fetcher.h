// Pictures that a request names by URL. Only hosts on a list are asked, only at public addresses,
// and only for so long and so much: a server that fetches for strangers must not reach what only it
// can reach.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include <boost/asio/ip/address.hpp>

namespace glimpse {

struct FetchRules {
  /// "example.org", "*.example.org", "*"; "host:8080" for another port than 80 and 443. A private
  /// address is reached only by an entry that is this very address.
  std::vector<std::string> hosts;  ///< empty: nothing is fetched
  size_t max_bytes = size_t{32} << 20;
  std::chrono::milliseconds timeout{10'000};  ///< of one picture, redirects included
  int max_redirects = 3;
};

/// Whether an address can be reached by anybody on the Internet: not private, local, multicast,
/// reserved, or one of these inside IPv6.
[[nodiscard]] bool is_public(const boost::asio::ip::address& address);

/// Whether the list has this host and port.
[[nodiscard]] bool is_allowed(const FetchRules& rules, const std::string& host, uint16_t port,
                              bool is_default_port);

/// The body of `url`. Blocks. `path` names the field in errors. Throws RequestError. Thread-safe.
[[nodiscard]] std::vector<std::byte> fetch_picture(const std::string& url, const std::string& path,
                                                   const FetchRules& rules);

}  // namespace glimpse
