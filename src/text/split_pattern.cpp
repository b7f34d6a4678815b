#include "text/split_pattern.h"

#include <array>
#include <string>

#include <fmt/format.h>

#include "glimpse/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace glimpse {
namespace {

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

/// PCRE2's \s also takes U+180E, which has not been white space since Unicode 6.3 and is none to
/// the engine that the vocabularies were trained with: spell the class out.
std::string with_unicode_white_space(std::string_view regex) {
  constexpr std::string_view kSpaces = R"(\x{9}-\x{d}\x{20}\x{85}\p{Z})";
  std::string result;
  bool in_class = false;
  for (size_t i = 0; i < regex.size(); ++i) {
    if (regex[i] == '\\' && i + 1 < regex.size()) {
      const char escaped = regex[++i];
      if (escaped == 's') {
        result.append(in_class ? std::string(kSpaces) : fmt::format("[{}]", kSpaces));
      } else if (escaped == 'S' && !in_class) {
        result.append(fmt::format("[^{}]", kSpaces));
      } else {
        result.append({'\\', escaped});
      }
      continue;
    }
    if (regex[i] == '[') in_class = true;
    if (regex[i] == ']') in_class = false;
    result.push_back(regex[i]);
  }
  return result;
}

struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

}  // namespace

void SplitPattern::FreeCode::operator()(void* code) const {
  pcre2_code_free(static_cast<pcre2_code*>(code));
}

SplitPattern::SplitPattern(std::string_view regex) {
  const std::string pattern = with_unicode_white_space(regex);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                            nullptr));
  if (!code_) {
    throw Error(
        ErrorCode::bad_model,
        fmt::format("the tokenizer's split pattern does not compile: {}", error_text(error)));
  }
  // Without JIT (a system that forbids writable code) the interpreter gives the same matches.
  (void)pcre2_jit_compile(static_cast<pcre2_code*>(code_.get()), PCRE2_JIT_COMPLETE);
}

void SplitPattern::for_each_piece(std::string_view text,
                                  const std::function<void(std::string_view)>& visit) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create(1, nullptr));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t done = 0;    // everything before is visited
  size_t search = 0;  // where the next match may begin
  while (search < text.size()) {
    int found =
        pcre2_match(code, subject, text.size(), search, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
      found = pcre2_match(code, subject, text.size(), search, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          match.get(), nullptr);
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("the tokenizer's split pattern fails on a text of {} bytes: {}",
                              text.size(), error_text(found)));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    const size_t begin = range[0];
    const size_t end = range[1];
    if (end <= begin) {  // an empty match cuts nothing; go on one character later
      search = begin + 1;
      while (search < text.size() && (static_cast<unsigned char>(text[search]) & 0xC0U) == 0x80U) {
        ++search;
      }
      continue;
    }
    if (begin > done) visit(text.substr(done, begin - done));
    visit(text.substr(begin, end - begin));
    done = search = end;
  }
  if (done < text.size()) visit(text.substr(done));
}

}  // namespace glimpse
