// The request bodies of the API: JSON in, requests of the engine out. No I/O but the check of a
// path under the media root, so that this can be fuzzed. What is not understood is refused by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "glimpse/request.h"

namespace glimpse {

/// What the server allows and assumes.
struct RequestRules {
  SamplingOptions sampling;          ///< what a request does not say
  std::string system;                ///< for chats without a system message; empty: none
  std::filesystem::path media_root;  ///< canonical; pictures by file:// URL; empty: refused
  int64_t max_pixels = 0;            ///< the engine's; 0: unknown
  size_t max_picture_bytes = size_t{32} << 20;
  int max_pictures = 64;
  int max_choices = 32;  ///< prompts times n
  bool fetches = false;  ///< whether http:// and https:// pictures are taken at all
};

/// A picture that is still to be fetched, and where it belongs.
struct RemotePicture {
  size_t message = 0;
  size_t part = 0;
  std::string url;
  std::string path;  ///< names it in errors
};

/// A parsed body. `requests` has one entry for each choice of the answer, `choices_per_prompt` (n)
/// neighbours for each prompt.
struct ApiRequest {
  std::vector<Request> requests;
  size_t choices_per_prompt = 1;
  std::vector<RemotePicture>
      remote_pictures;  ///< of every request alike; their parts have no bytes
  std::string model;    ///< empty: not given
  bool stream = false;
  bool include_usage = false;  ///< stream_options.include_usage
};

/// The body of POST /v1/chat/completions. Throws RequestError. Thread-safe.
[[nodiscard]] ApiRequest parse_chat_request(std::string_view body, const RequestRules& rules);

/// The body of POST /v1/completions. Throws RequestError. Thread-safe.
[[nodiscard]] ApiRequest parse_completion_request(std::string_view body, const RequestRules& rules);

}  // namespace glimpse
