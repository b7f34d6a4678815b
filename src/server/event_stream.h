// Server-sent events as bytes.
#pragma once

#include <string>
#include <string_view>

namespace glimpse {

/// One event whose data is `data`. Line ends within it (LF, CR, CR LF) are where its lines part: a
/// client gets them back as LF.
[[nodiscard]] std::string stream_event(std::string_view data);

/// The data of the last event of a stream.
inline constexpr std::string_view kStreamEnd = "[DONE]";

}  // namespace glimpse
