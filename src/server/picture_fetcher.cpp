#include "server/picture_fetcher.h"

#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>

#include "server/http_client.h"
#include "server/request_error.h"

namespace glimpse {
namespace {

namespace ip = boost::asio::ip;

struct Network {
  uint32_t address;
  int bits;
};

// IANA's special-purpose IPv4 addresses, multicast and the reserved rest.
constexpr std::array<Network, 15> kSpecial = {{
    {0x00000000, 8},   // this host
    {0x0A000000, 8},   // private
    {0x64400000, 10},  // carriers' shared
    {0x7F000000, 8},   // loopback
    {0xA9FE0000, 16},  // link-local
    {0xAC100000, 12},  // private
    {0xC0000000, 24},  // protocol assignments
    {0xC0000200, 24},  // documentation
    {0xC0586300, 24},  // 6to4 relays
    {0xC0A80000, 16},  // private
    {0xC6120000, 15},  // benchmarks
    {0xC6336400, 24},  // documentation
    {0xCB007100, 24},  // documentation
    {0xE0000000, 4},   // multicast
    {0xF0000000, 4},   // reserved, broadcast
}};

bool is_public_v4(uint32_t address) {
  return std::none_of(kSpecial.begin(), kSpecial.end(), [&](const Network& network) {
    return ((address ^ network.address) >> (32 - network.bits)) == 0;
  });
}

bool is_public_v6(const ip::address_v6& address) {
  if (address.is_v4_mapped()) {
    return is_public_v4(ip::make_address_v4(ip::v4_mapped, address).to_uint());
  }
  const ip::address_v6::bytes_type b = address.to_bytes();
  const bool is_global = (b[0] & 0xE0U) == 0x20;                        // 2000::/3
  const bool is_assignment = b[0] == 0x20 && b[1] == 0x01 && b[2] < 2;  // 2001::/23, Teredo
  const bool is_documentation =
      (b[0] == 0x20 && b[1] == 0x01 && b[2] == 0x0D && b[3] == 0xB8) ||  // 2001:db8::/32
      (b[0] == 0x3F && b[1] == 0xFF && b[2] < 0x10);                     // 3fff::/20
  const bool is_6to4 = b[0] == 0x20 && b[1] == 0x02;                     // hides an IPv4 address
  return is_global && !is_assignment && !is_documentation && !is_6to4;
}

// "host", or "host:port" cut apart; an IPv6 address stands in brackets to have a port.
std::pair<std::string, int> split_entry(const std::string& entry) {
  const size_t colon = entry.rfind(':');
  const bool has_port = colon != std::string::npos &&
                        (entry.find(':') == colon || (colon > 0 && entry[colon - 1] == ']'));
  std::string host = entry.substr(0, has_port ? colon : std::string::npos);
  int port = 0;
  if (has_port) std::from_chars(entry.data() + colon + 1, entry.data() + entry.size(), port);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return {host, port};
}

bool matches(const std::string& pattern, const std::string& host) {
  if (pattern == "*") return true;
  if (pattern.rfind("*.", 0) != 0) return pattern == host;
  const std::string suffix = pattern.substr(1);
  return host.size() > suffix.size() &&
         host.compare(host.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// Whether the list names this very address.
bool names_address(const FetchRules& rules, const HttpUrl& url) {
  boost::system::error_code is_name;
  ip::make_address(url.host, is_name);
  return !is_name && std::any_of(rules.hosts.begin(), rules.hosts.end(), [&](const auto& entry) {
    const auto [host, port] = split_entry(entry);
    return host == url.host && (port == url.port || (port == 0 && url.port == url.default_port()));
  });
}

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

}  // namespace

bool is_public(const ip::address& address) {
  return address.is_v4() ? is_public_v4(address.to_v4().to_uint()) : is_public_v6(address.to_v6());
}

bool is_allowed(const FetchRules& rules, const std::string& host, uint16_t port,
                bool is_default_port) {
  return std::any_of(rules.hosts.begin(), rules.hosts.end(), [&](const std::string& entry) {
    const auto [pattern, entry_port] = split_entry(entry);
    return matches(pattern, host) && (entry_port == port || (entry_port == 0 && is_default_port));
  });
}

std::vector<std::byte> fetch_picture(const std::string& text, const std::string& path,
                                     const FetchRules& rules) {
  const auto end = std::chrono::steady_clock::now() + rules.timeout;
  std::vector<std::byte> bytes;
  try {
    HttpUrl url = parse_http_url(text);
    for (int hop = 0; hop <= rules.max_redirects; ++hop) {
      if (!is_allowed(rules, url.host, url.port, url.port == url.default_port())) {
        throw RequestError(400,
                           fmt::format("{} leads to {}, a host this server does not fetch from",
                                       path, url.authority()),
                           path, "send the picture as a data URL");
      }
      HttpCall call;
      call.timeout = std::max(std::chrono::milliseconds(1),
                              std::chrono::duration_cast<std::chrono::milliseconds>(
                                  end - std::chrono::steady_clock::now()));
      if (!names_address(rules, url)) call.allows = is_public;
      const HttpReply reply =
          make_http_call(url, call, [&](const HttpReply& head, std::string_view piece) {
            if (head.status != 200) return;
            if (bytes.size() + piece.size() > rules.max_bytes) {
              throw RequestError(400,
                                 fmt::format("{} is larger than {} bytes", path, rules.max_bytes),
                                 path, "send a smaller picture");
            }
            const auto* data = reinterpret_cast<const std::byte*>(piece.data());
            bytes.insert(bytes.end(), data, data + piece.size());
          });
      if (reply.status == 200) return bytes;
      if (!is_redirect(reply.status)) {
        throw RequestError(400,
                           fmt::format("{}: {} answered {}", path, url.authority(), reply.status),
                           path, "check that anybody may read this picture");
      }
      url = redirected(url, reply.location);
    }
  } catch (const RequestError&) {
    throw;
  } catch (const Error& error) {
    throw RequestError(400, fmt::format("{}: {}", path, error.what()), path, error.hint());
  }
  throw RequestError(400,
                     fmt::format("{} is redirected more than {} times", path, rules.max_redirects),
                     path, "give the picture's own URL");
}

}  // namespace glimpse
