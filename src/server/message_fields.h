// The "messages" of a chat: roles, text, pictures, earlier tool calls.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "server/chat_request.h"

namespace glimpse {

/// Throws RequestError. Puts rules.system first when the chat has no system message. Pictures that
/// must be fetched are appended to `remote`.
[[nodiscard]] std::vector<Message> parse_messages(const Json& messages, const RequestRules& rules,
                                                  std::vector<RemotePicture>& remote);

/// A picture by URL: data URLs, and file:// under rules.media_root; http:// and https:// give one
/// without bytes, when rules.fetches allows. `path` names it in errors.
[[nodiscard]] Picture parse_picture_url(const std::string& url, const std::string& path,
                                        const RequestRules& rules);

}  // namespace glimpse
