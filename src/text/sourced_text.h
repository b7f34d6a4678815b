// Text that remembers for every byte whether the chat template wrote it or it came from the
// conversation. All string operations of the template language are made of append() and substr(),
// so none can launder a user's text into control tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace glimpse {

enum class TextSource : uint8_t { chat_template, conversation };

class SourcedText {
 public:
  SourcedText() = default;
  SourcedText(std::string text, TextSource source);

  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] size_t size() const { return text_.size(); }
  void append(const SourcedText& other);
  void append(std::string_view text, TextSource source);
  /// `begin` and `length` in bytes, cut to what there is.
  [[nodiscard]] SourcedText substr(size_t begin, size_t length = std::string::npos) const;
  /// Who wrote the byte at `at`, which must exist.
  [[nodiscard]] TextSource source_at(size_t at) const;
  /// Who wrote all of it: the conversation if it wrote any byte.
  [[nodiscard]] TextSource overall_source() const;

  /// The runs of one source, as pieces for the tokenizer.
  [[nodiscard]] std::vector<TextPiece> pieces() const;

 private:
  struct Run {
    size_t end;
    TextSource source;
  };
  std::string text_;
  std::vector<Run> runs_;  // ends ascend; the last is text_.size(); neighbours differ in source
};

}  // namespace glimpse
