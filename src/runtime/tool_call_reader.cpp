#include "runtime/tool_call_reader.h"

#include <algorithm>

#include "base/json.h"

namespace glimpse {
namespace {

constexpr std::string_view kHead = "<tool_call>\n{\"name\": ";
constexpr std::string_view kBeforeArguments = ", \"arguments\": ";
constexpr std::string_view kTail = "</tool_call>";

// One past the closing quote of the JSON string that begins at `first`, or npos.
size_t end_of_string(std::string_view text, size_t first) {
  for (size_t i = first + 1; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      return i + 1;
    }
  }
  return std::string_view::npos;
}

}  // namespace

void ToolCallReader::push(std::string_view text, std::vector<ToolCallPiece>& pieces) {
  unread_ += text;
  for (bool goes_on = follows_form_; goes_on;) {
    switch (place_) {
      case Place::before_arguments:
        goes_on = read_head(pieces);
        break;
      case Place::arguments:
        goes_on = read_arguments(pieces);
        break;
      case Place::after_arguments:
        goes_on = skip_tail();
        break;
    }
  }
}

bool ToolCallReader::read_head(std::vector<ToolCallPiece>& pieces) {
  const size_t known = std::min(unread_.size(), kHead.size());
  follows_form_ = unread_.compare(0, known, kHead, 0, known) == 0;
  if (!follows_form_ || unread_.size() <= kHead.size()) return false;
  const size_t name_end = end_of_string(unread_, kHead.size());
  if (name_end == std::string_view::npos) return false;
  const size_t head_end = name_end + kBeforeArguments.size();
  if (unread_.size() < head_end) return false;
  const Json name =
      Json::parse(unread_.substr(kHead.size(), name_end - kHead.size()), nullptr, false);
  follows_form_ =
      name.is_string() && unread_.compare(name_end, kBeforeArguments.size(), kBeforeArguments) == 0;
  if (!follows_form_) return false;
  calls_.push_back({name.get<std::string>(), ""});
  pieces.push_back({.index = static_cast<int>(calls_.size()) - 1, .name = calls_.back().name});
  unread_.erase(0, head_end);
  place_ = Place::arguments;
  return true;
}

// The bracket that closes nothing within the arguments closes the call.
bool ToolCallReader::read_arguments(std::vector<ToolCallPiece>& pieces) {
  size_t end = 0;
  bool is_over = false;
  for (; end < unread_.size() && !is_over; end += is_over ? 0 : 1) {
    const char c = unread_[end];
    if (in_string_) {
      if (c == '"' && !after_backslash_) in_string_ = false;
      after_backslash_ = c == '\\' && !after_backslash_;
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      is_over = depth_ == 0;
      depth_ -= is_over ? 0 : 1;
    }
  }
  if (end > 0) {
    const std::string text = unread_.substr(0, end);
    calls_.back().arguments_json += text;
    const int index = static_cast<int>(calls_.size()) - 1;
    if (pieces.empty() || pieces.back().index != index) pieces.push_back({.index = index});
    pieces.back().arguments += text;
    unread_.erase(0, end);
  }
  if (is_over) place_ = Place::after_arguments;
  return is_over;
}

bool ToolCallReader::skip_tail() {
  const size_t tail = unread_.find(kTail);
  const size_t next =
      tail == std::string::npos ? tail : unread_.find(kHead.front(), tail + kTail.size());
  if (next == std::string::npos) return false;
  unread_.erase(0, next);
  place_ = Place::before_arguments;
  return true;
}

}  // namespace glimpse
