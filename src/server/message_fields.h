// The "messages" of a chat: roles, text, pictures, earlier tool calls.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "server/chat_request.h"

namespace glimpse {

/// Throws RequestError. Puts rules.system first when the chat has no system message.
[[nodiscard]] std::vector<Message> parse_messages(const Json& messages, const RequestRules& rules);

/// A picture by URL: data URLs, and file:// under rules.media_root. `path` names it in errors.
[[nodiscard]] Picture parse_picture_url(const std::string& url, const std::string& path,
                                        const RequestRules& rules);

}  // namespace glimpse
