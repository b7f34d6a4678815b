#include "text/stream_decoder.h"

#include <utility>

#include "text/unicode.h"

namespace glimpse {

std::string StreamDecoder::push(TokenId id) {
  if (tokenizer_->is_special(id)) return {};
  pending_.append(tokenizer_->token_bytes(id));
  std::string text;
  const size_t consumed = append_replacing_invalid(pending_, Utf8Tail::keep_incomplete, text);
  pending_.erase(0, consumed);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  append_replacing_invalid(pending_, Utf8Tail::replace_incomplete, text);
  pending_.clear();
  return text;
}

}  // namespace glimpse
