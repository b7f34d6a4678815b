// HTTP/1 requests out of a stream of bytes. Boost.Beast parses; nothing here does I/O, so that it
// can be fuzzed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "server/http.h"

namespace glimpse {

struct RequestLimits {
  uint64_t max_body_bytes = uint64_t{32} << 20;
  uint32_t max_head_bytes = 16384;
};

/// Reads one request. Not thread-safe.
class RequestReader {
 public:
  explicit RequestReader(const RequestLimits& limits);
  ~RequestReader();

  /// Takes from the front of `bytes` what belongs to this request and returns how much that was; 0
  /// when the head is incomplete. Stops behind the head once, so that it can be judged first.
  /// Throws RequestError: 400, 413 or 431.
  size_t take(std::string_view bytes);

  [[nodiscard]] bool has_head() const;
  [[nodiscard]] bool is_complete() const;
  [[nodiscard]] const HttpHead& head() const { return head_; }
  /// Bytes of the body so far.
  [[nodiscard]] uint64_t body_bytes() const;
  [[nodiscard]] std::string take_body();

 private:
  class Parser;
  void read_head();

  std::unique_ptr<Parser> parser_;
  HttpHead head_;
  bool head_read_ = false;
};

}  // namespace glimpse
