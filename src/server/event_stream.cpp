#include "server/event_stream.h"

namespace glimpse {

std::string stream_event(std::string_view data) {
  std::string bytes;
  bytes.reserve(data.size() + 8);
  for (;;) {
    const size_t end = data.find_first_of("\r\n");
    bytes += "data: ";
    bytes += data.substr(0, end);
    bytes += '\n';
    if (end == std::string_view::npos) break;
    const bool is_pair = data.substr(end, 2) == "\r\n";
    data.remove_prefix(end + (is_pair ? 2 : 1));
  }
  return bytes += '\n';
}

}  // namespace glimpse
