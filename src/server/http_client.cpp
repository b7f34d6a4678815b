#include "server/http_client.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <memory>
#include <optional>

#include <fmt/format.h>
#include <openssl/ssl.h>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>

#include "glimpse/error.h"

namespace glimpse {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr size_t kPieceBytes = 16384;

Error bad_url(std::string_view text, const char* what) {
  return {ErrorCode::invalid_argument, fmt::format("the URL '{}' {}", text, what),
          "write http://host:port/path or https://host/path"};
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

// One connection and one exchange on it. Every step is an asynchronous operation that is waited
// for, because only these have timeouts.
class Call {
 public:
  Call(const HttpUrl& url, const HttpCall& call) : url_(url), call_(call) {
    if (call.timeout.count() > 0) deadline_ = Clock::now() + call.timeout;
  }

  HttpReply run(const std::function<void(const HttpReply&, std::string_view)>& on_body) {
    connect();
    if (url_.is_secure) {
      handshake();
      return exchange(*secure_, on_body);
    }
    return exchange(lowest(), on_body);
  }

 private:
  beast::tcp_stream& lowest() { return secure_ ? beast::get_lowest_layer(*secure_) : *plain_; }

  // `start` begins one operation with the handler it is given.
  template <typename Start>
  error_code wait_for(const Start& start) {
    error_code result = asio::error::timed_out;
    start([&result](error_code error, const auto&...) { result = error; });
    context_.restart();
    if (deadline_) {
      context_.run_until(*deadline_);
    } else {
      context_.run();
    }
    if (result == beast::error::timeout) result = asio::error::timed_out;
    const error_code outcome = result;  // closing ends the operation with another one
    if (outcome == asio::error::timed_out) close();
    return outcome;
  }
  void close() {
    if (secure_ || plain_) lowest().close();
    resolver_.cancel();
    context_.restart();
    context_.poll();
  }

  [[noreturn]] void fail(error_code error, const char* doing) {
    if (error == asio::error::timed_out) {
      throw Error(ErrorCode::overloaded,
                  fmt::format("{} took too long while {}", url_.authority(), doing),
                  "try again, or ask another host");
    }
    throw Error(ErrorCode::not_found,
                fmt::format("{} does not answer: {}", url_.authority(), error.message()),
                "check the host and the port");
  }

  void connect() {
    std::vector<tcp::endpoint> endpoints;
    const error_code unresolved = wait_for([&](auto handler) {
      resolver_.async_resolve(url_.host, std::to_string(url_.port),
                              [&endpoints, handler](error_code error, const auto& results) {
                                for (const auto& entry : results) {
                                  endpoints.push_back(entry.endpoint());
                                }
                                handler(error);
                              });
    });
    if (unresolved) fail(unresolved, "its name was looked up");
    // The addresses that were checked are the ones connected to: no second look-up in between.
    if (call_.allows) {
      std::erase_if(endpoints, [&](const tcp::endpoint& e) { return !call_.allows(e.address()); });
    }
    if (endpoints.empty()) {
      throw Error(ErrorCode::not_found, fmt::format("{} has no public address", url_.authority()),
                  "private addresses are not connected to");
    }
    if (url_.is_secure) {
      tls_.set_default_verify_paths();
      tls_.set_verify_mode(asio::ssl::verify_peer);
      secure_.emplace(context_, tls_);
    } else {
      plain_.emplace(context_);
    }
    lowest().expires_after(call_.connect_timeout);
    const error_code failed =
        wait_for([&](auto handler) { lowest().async_connect(endpoints, handler); });
    if (failed) fail(failed, "connecting");
    lowest().expires_never();
    if (deadline_) lowest().expires_at(*deadline_);
  }

  void handshake() {
    secure_->set_verify_callback(asio::ssl::host_name_verification(url_.host));
    SSL_set_tlsext_host_name(secure_->native_handle(), url_.host.c_str());
    const error_code failed = wait_for(
        [&](auto handler) { secure_->async_handshake(asio::ssl::stream_base::client, handler); });
    if (failed) fail(failed, "agreeing on TLS");
  }

  template <typename Stream>
  HttpReply exchange(Stream& stream,
                     const std::function<void(const HttpReply&, std::string_view)>& on_body) {
    http::request<http::string_body> request;
    request.method_string(call_.method);
    request.target(url_.target);
    request.version(11);
    request.set(http::field::host, url_.authority());
    request.set(http::field::user_agent, "glimpse");
    request.set(http::field::connection, "close");
    for (const auto& [name, value] : call_.headers) request.set(name, value);
    request.body() = call_.body;
    request.prepare_payload();
    // A server that refuses a body may answer before it has read all of it.
    const error_code unsent =
        wait_for([&](auto handler) { http::async_write(stream, request, handler); });
    if (unsent == asio::error::timed_out) fail(unsent, "the request was sent");

    http::response_parser<http::buffer_body> parser;
    // Callers count; boost::none is a limit of nothing to Boost 1.74.
    parser.body_limit(std::numeric_limits<uint64_t>::max());
    const error_code no_head =
        wait_for([&](auto handler) { http::async_read_header(stream, buffer_, parser, handler); });
    if (no_head) fail(unsent ? unsent : no_head, "it was to answer");
    const auto& head = parser.get();
    const HttpReply reply{.status = static_cast<int>(head.result_int()),
                          .location = std::string(head[http::field::location]),
                          .content_type = std::string(head[http::field::content_type])};
    std::vector<char> piece(kPieceBytes);
    while (!parser.is_done()) {
      parser.get().body().data = piece.data();
      parser.get().body().size = piece.size();
      const error_code failed =
          wait_for([&](auto handler) { http::async_read_some(stream, buffer_, parser, handler); });
      if (failed && failed != http::error::need_buffer) fail(failed, "it answered");
      on_body(reply, {piece.data(), piece.size() - parser.get().body().size});
    }
    return reply;
  }

  const HttpUrl& url_;
  const HttpCall& call_;
  std::optional<Clock::time_point> deadline_;
  asio::io_context context_{1};
  tcp::resolver resolver_{context_};
  asio::ssl::context tls_{asio::ssl::context::tls_client};
  std::optional<beast::tcp_stream> plain_;
  std::optional<beast::ssl_stream<beast::tcp_stream>> secure_;
  beast::flat_buffer buffer_{size_t{1} << 20};
};

}  // namespace

std::string HttpUrl::authority() const {
  const std::string name = host.find(':') == std::string::npos ? host : "[" + host + "]";
  return port == default_port() ? name : fmt::format("{}:{}", name, port);
}

HttpUrl parse_http_url(std::string_view text) {
  const bool printable = std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return c > ' ' && c < 0x7F && c != '\\' && c != '"' && c != '<' && c != '>';
  });
  if (!printable) throw bad_url(text, "has spaces or letters that a URL writes with %");
  HttpUrl url;
  const size_t scheme_end = text.find("://");
  const std::string scheme = lower_case(text.substr(0, scheme_end));
  if (scheme_end == text.npos || (scheme != "http" && scheme != "https")) {
    throw bad_url(text, "is neither http:// nor https://");
  }
  url.is_secure = scheme == "https";
  url.port = url.default_port();
  const std::string_view rest = text.substr(scheme_end + 3);
  std::string_view authority = rest.substr(0, rest.find_first_of("/?#"));
  std::string_view target = rest.substr(authority.size());
  target = target.substr(0, target.find('#'));
  url.target = target.empty() || target.front() == '?' ? "/" + std::string(target) : target;
  if (authority.find('@') != authority.npos) throw bad_url(text, "has a user name");
  std::string_view port;
  if (!authority.empty() && authority.front() == '[') {
    const size_t end = authority.find(']');
    if (end == authority.npos) throw bad_url(text, "has no ] after its address");
    url.host = lower_case(authority.substr(1, end - 1));
    port = authority.substr(end + 1);
  } else {
    const size_t colon = std::min(authority.find(':'), authority.size());
    url.host = lower_case(authority.substr(0, colon));
    port = authority.substr(colon);
  }
  if (url.host.empty()) throw bad_url(text, "has no host");
  if (port.empty()) return url;
  int number = 0;
  const auto [end, failed] = std::from_chars(port.data() + 1, port.data() + port.size(), number);
  if (port.front() != ':' || failed != std::errc() || end != port.data() + port.size() ||
      number < 1 || number > 65535) {
    throw bad_url(text, "has a port that is not between 1 and 65535");
  }
  url.port = static_cast<uint16_t>(number);
  return url;
}

HttpUrl redirected(const HttpUrl& base, std::string_view location) {
  const std::string scheme = base.is_secure ? "https:" : "http:";
  if (location.substr(0, 2) == "//") return parse_http_url(scheme + std::string(location));
  if (location.substr(0, 1) == "/") {
    return parse_http_url(fmt::format("{}//{}{}", scheme, base.authority(), location));
  }
  return parse_http_url(location);
}

HttpReply make_http_call(const HttpUrl& url, const HttpCall& call,
                         const std::function<void(const HttpReply&, std::string_view)>& on_body) {
  return Call(url, call).run(on_body);
}

}  // namespace glimpse
