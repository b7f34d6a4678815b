#include "server/request_reader.h"

#include <algorithm>
#include <random>

#include <fmt/format.h>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "server/request_error.h"

namespace glimpse {
namespace {

namespace http = boost::beast::http;

std::string copy(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

[[noreturn]] void refuse(const boost::beast::error_code& error, const RequestLimits& limits) {
  if (error == http::error::body_limit) {
    throw RequestError(
        413, fmt::format("the request body is larger than {} bytes", limits.max_body_bytes), {},
        "send smaller pictures, or start the server with a larger --max-body");
  }
  if (error == http::error::header_limit) {
    throw RequestError(
        431, fmt::format("the request's headers are larger than {} bytes", limits.max_head_bytes));
  }
  throw RequestError(400, "the request is not valid HTTP: " + error.message());
}

// What stands before the path when a request came through a proxy: http://host.
std::string without_authority(std::string target) {
  const size_t scheme = target.find("://");
  if (target.empty() || target[0] == '/' || scheme == std::string::npos) return target;
  const size_t path = target.find('/', scheme + 3);
  return path == std::string::npos ? "/" : target.substr(path);
}

// Where the body's end cannot be known, what follows must not be taken for another request.
void refuse_codings(const http::request<http::string_body>& request, bool has_body) {
  const auto transfer = request[http::field::transfer_encoding];
  if (!transfer.empty() && !boost::beast::iequals(transfer, "chunked")) {
    throw RequestError(400, "the only Transfer-Encoding that is understood is chunked");
  }
  const auto content = request[http::field::content_encoding];
  if (has_body && !content.empty() && !boost::beast::iequals(content, "identity")) {
    throw RequestError(415, "the body must not have a Content-Encoding", {},
                       "send it as it is, without compression", "unsupported_media_type");
  }
}

// A client's own id is kept when it can stand in a log line and a header.
bool is_harmless_id(const std::string& id) {
  return !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.';
  });
}

std::string fresh_request_id() {
  thread_local std::mt19937_64 random{[] {
    std::random_device device;
    return uint64_t{device()} << 32U | device();
  }()};
  return fmt::format("req-{:016x}", random());
}

}  // namespace

class RequestReader::Parser {
 public:
  explicit Parser(const RequestLimits& limits) : limits_(limits) {
    parser_.header_limit(limits.max_head_bytes);
    parser_.body_limit(limits.max_body_bytes);
  }

  size_t put(std::string_view bytes) {
    boost::beast::error_code error;
    size_t used = 0;
    while (used < bytes.size() && !parser_.is_done()) {
      const size_t count =
          parser_.put(boost::asio::buffer(bytes.data() + used, bytes.size() - used), error);
      used += count;
      if (error == http::error::need_more) return used;
      if (error) refuse(error, limits_);
      if (!parser_.is_header_done() || count == 0) continue;
      if (!judged_) {
        judged_ = true;
        parser_.eager(true);
        return used;
      }
    }
    return used;
  }

  http::request_parser<http::string_body>& get() { return parser_; }

 private:
  http::request_parser<http::string_body> parser_;
  RequestLimits limits_;
  bool judged_ = false;
};

RequestReader::RequestReader(const RequestLimits& limits)
    : parser_(std::make_unique<Parser>(limits)) {}

RequestReader::~RequestReader() = default;

size_t RequestReader::take(std::string_view bytes) {
  const size_t used = parser_->put(bytes);
  if (!head_read_ && has_head()) read_head();
  return used;
}

bool RequestReader::has_head() const {
  return parser_->get().is_header_done();
}

bool RequestReader::is_complete() const {
  return parser_->get().is_done();
}

uint64_t RequestReader::body_bytes() const {
  return parser_->get().get().body().size();
}

std::string RequestReader::take_body() {
  return std::move(parser_->get().get().body());
}

void RequestReader::read_head() {
  head_read_ = true;
  const auto& request = parser_->get().get();
  head_.method = copy(request.method_string());
  const std::string target = without_authority(copy(request.target()));
  head_.path = target.substr(0, target.find('?'));
  head_.authorization = copy(request[http::field::authorization]);
  head_.content_type = copy(request[http::field::content_type]);
  head_.origin = copy(request[http::field::origin]);
  head_.request_id = copy(request["X-Request-Id"]);
  if (!is_harmless_id(head_.request_id)) head_.request_id = fresh_request_id();
  head_.keep_alive = request.keep_alive();
  head_.can_stream = request.version() >= 11;
  head_.expects_continue =
      boost::beast::iequals(request[http::field::expect], "100-continue") && head_.can_stream;
  head_.has_body = parser_->get().chunked() || parser_->get().content_length().value_or(0) > 0;
  head_.content_length = parser_->get().content_length().value_or(0);
  refuse_codings(request, head_.has_body);
}

}  // namespace glimpse
