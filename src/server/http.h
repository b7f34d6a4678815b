// The words that connections and routes share: a request's head, a response, and the two
// interfaces between them. Nothing here knows about sockets or about the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "glimpse/error.h"

namespace glimpse {

/// What stands before a body.
struct HttpHead {
  std::string method;
  std::string path;  ///< without the query
  std::string authorization;
  std::string content_type;
  std::string origin;
  std::string request_id;  ///< the client's, if it is harmless; else one of our own
  bool keep_alive = true;
  bool expects_continue = false;
  bool can_stream = true;  ///< HTTP/1.1: chunks are understood
  bool has_body = false;
  uint64_t content_length = 0;  ///< 0 also when the body comes in chunks
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

/// "Not Found" for 404.
[[nodiscard]] std::string reason_phrase(int status);

/// One line of the access log: never what was asked or answered.
struct AccessRecord {
  std::string request_id;
  std::string method;
  std::string route;  ///< "-" for an unknown path, which is the client's text
  std::string client;
  int status = 0;
  bool client_gone = false;  ///< it closed the connection before the answer's end
  uint64_t body_bytes = 0;
  uint64_t answer_bytes = 0;
  double milliseconds = 0;
};

/// The place for one answer. Thread-safe: each call is handed to the connection's strand. Ends with
/// respond() or finish_stream(); dropped before that, the client gets a 500.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual void respond(HttpResponse response) = 0;
  /// Sends status and headers; `body` is ignored.
  virtual void start_stream(HttpResponse head) = 0;
  virtual void stream(std::string data) = 0;
  virtual void finish_stream() = 0;
  /// `on_gone` is called once if the client leaves, or reads too slowly, before the end.
  virtual void on_gone(std::function<void()> on_gone) = 0;
};

/// What answers requests. Thread-safe.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  /// The error, if the head is enough to know it: the body is then never read.
  [[nodiscard]] virtual std::optional<HttpResponse> refuse(const HttpHead& head) = 0;
  virtual void handle(HttpHead head, std::string body, std::shared_ptr<Exchange> exchange) = 0;
  /// The answer to a request that was not even HTTP, or exceeds a limit.
  [[nodiscard]] virtual HttpResponse error_response(const Error& error) = 0;
  /// Headers that every answer carries (CORS).
  virtual void decorate(const HttpHead& head, HttpResponse& response) = 0;
  virtual void finished(const AccessRecord& record) = 0;
};

}  // namespace glimpse
