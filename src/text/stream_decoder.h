// Text out of a stream of tokens, whole characters only.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace glimpse {

/// One answer in flight. Not thread-safe; the tokenizer must outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  /// The text that token `id` completes: bytes of an unfinished character are held back. Special
  /// tokens give nothing. Concatenating all results and finish() equals Tokenizer::decode().
  [[nodiscard]] std::string push(TokenId id);
  /// The held-back bytes as U+FFFD, once the answer is over.
  [[nodiscard]] std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
};

}  // namespace glimpse
