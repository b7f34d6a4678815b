// The bodies of POST /v1/chat/completions and /v1/completions.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "server/chat_request.h"
#include "server/request_error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  glimpse::RequestRules rules;
  rules.fetches = true;
  for (const auto parse : {glimpse::parse_chat_request, glimpse::parse_completion_request}) {
    try {
      const glimpse::ApiRequest request = parse(body, rules);
      if (request.requests.empty()) __builtin_trap();
      // Remote pictures lie where the request says.
      for (const glimpse::RemotePicture& remote : request.remote_pictures) {
        const auto& messages = request.requests.front().messages;
        if (!messages.at(remote.message).parts.at(remote.part).picture) __builtin_trap();
      }
    } catch (const glimpse::RequestError& error) {
      // A mistake of the client's is a 4xx, and its answer can be written.
      if (error.status() < 400 || error.status() > 499) __builtin_trap();
      if (glimpse::error_body(error)
              .dump(-1, ' ', false, glimpse::Json::error_handler_t::replace)
              .empty()) {
        __builtin_trap();
      }
    }
  }
  return 0;
}
