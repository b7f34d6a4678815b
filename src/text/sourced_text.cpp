#include "text/sourced_text.h"

#include <algorithm>

#include "base/check.h"

namespace glimpse {

SourcedText::SourcedText(std::string text, TextSource source) : text_(std::move(text)) {
  if (!text_.empty()) runs_.push_back({text_.size(), source});
}

void SourcedText::append(std::string_view text, TextSource source) {
  if (text.empty()) return;
  text_.append(text);
  if (!runs_.empty() && runs_.back().source == source) {
    runs_.back().end = text_.size();
  } else {
    runs_.push_back({text_.size(), source});
  }
}

void SourcedText::append(const SourcedText& other) {
  check(&other != this, "a text is not appended to itself");
  size_t begin = 0;
  for (const Run& run : other.runs_) {
    append(std::string_view(other.text_).substr(begin, run.end - begin), run.source);
    begin = run.end;
  }
}

SourcedText SourcedText::substr(size_t begin, size_t length) const {
  begin = std::min(begin, text_.size());
  const size_t end = begin + std::min(length, text_.size() - begin);
  SourcedText result;
  auto run = std::upper_bound(runs_.begin(), runs_.end(), begin,
                              [](size_t at, const Run& r) { return at < r.end; });
  for (size_t at = begin; at < end; ++run) {
    const size_t stop = std::min(run->end, end);
    result.append(std::string_view(text_).substr(at, stop - at), run->source);
    at = stop;
  }
  return result;
}

TextSource SourcedText::source_at(size_t at) const {
  check(at < text_.size(), "a byte of the text is asked for");
  return std::upper_bound(runs_.begin(), runs_.end(), at,
                          [](size_t i, const Run& r) { return i < r.end; })
      ->source;
}

TextSource SourcedText::overall_source() const {
  const bool all_template = std::all_of(runs_.begin(), runs_.end(), [](const Run& run) {
    return run.source == TextSource::chat_template;
  });
  return all_template ? TextSource::chat_template : TextSource::conversation;
}

std::vector<TextPiece> SourcedText::pieces() const {
  std::vector<TextPiece> result;
  size_t begin = 0;
  for (const Run& run : runs_) {
    result.push_back(
        {text_.substr(begin, run.end - begin), run.source == TextSource::chat_template});
    begin = run.end;
  }
  return result;
}

}  // namespace glimpse
