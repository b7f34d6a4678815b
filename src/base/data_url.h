// Pictures inside a request: "data:image/png;base64,...".
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace glimpse {

struct DataUrlLimits {
  /// Bytes of the decoded file; checked before anything is allocated.
  size_t max_bytes = size_t{64} << 20;
};

/// True if `url` has the data scheme (in any case).
[[nodiscard]] bool is_data_url(std::string_view url);

/// The bytes of a base64 data URL. The media type is ignored: decode_picture() looks at the
/// content. Strict: canonical base64 of the standard alphabet, padded, without white space.
/// Throws Error(invalid_argument). Thread-safe.
[[nodiscard]] std::vector<std::byte> decode_data_url(std::string_view url,
                                                     const DataUrlLimits& limits = {});

/// "data:application/octet-stream;base64,..." of a file: who decodes it looks at the content.
[[nodiscard]] std::string encode_data_url(std::span<const std::byte> bytes);

}  // namespace glimpse
