// HTTP/1 requests as bytes: in one piece, and cut in two anywhere, they are read alike.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "server/request_error.h"
#include "server/request_reader.h"

namespace {

// The method, path and body, or the status of the refusal.
std::string read_all(std::string_view bytes, size_t cut) {
  glimpse::RequestReader reader({.max_body_bytes = 256, .max_head_bytes = 512});
  std::string pending;
  try {
    for (const std::string_view piece : {bytes.substr(0, cut), bytes.substr(cut)}) {
      pending += piece;
      while (!pending.empty() && !reader.is_complete()) {
        const size_t used = reader.take(pending);
        pending.erase(0, used);
        if (used == 0) break;
      }
    }
  } catch (const glimpse::RequestError& error) {
    if (error.status() != 400 && error.status() != 413 && error.status() != 431) __builtin_trap();
    return "refused";
  }
  if (!reader.has_head()) return "incomplete head";
  const glimpse::HttpHead& head = reader.head();
  if (head.request_id.empty() || head.request_id.size() > 64) __builtin_trap();
  std::string all = head.method + "\n" + head.path + "\n";
  if (reader.is_complete()) all += reader.take_body();
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > 2048) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::string whole = read_all(bytes, bytes.size());
  const std::string halves = read_all(bytes, bytes.empty() ? 0 : data[0] % bytes.size());
  // The limit on the head can be noticed sooner or later, depending on the cut.
  if (whole != halves && whole != "refused" && halves != "refused") __builtin_trap();
  return 0;
}
