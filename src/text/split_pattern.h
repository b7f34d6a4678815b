// The regular expression that cuts text into pieces before BPE, run by PCRE2's JIT.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

namespace glimpse {

/// Immutable after construction; for_each_piece() is const and thread-safe.
class SplitPattern {
 public:
  /// `regex` as tokenizer.json writes it (Oniguruma's dialect). Throws Error(bad_model) when it
  /// does not compile.
  explicit SplitPattern(std::string_view regex);

  /// Calls `visit` with every match and every stretch between matches, in order: together they are
  /// `text`, which must be valid UTF-8. Throws Error(unsupported) when the pattern backtracks
  /// beyond PCRE2's limits.
  void for_each_piece(std::string_view text,
                      const std::function<void(std::string_view)>& visit) const;

 private:
  struct FreeCode {
    void operator()(void* code) const;
  };
  std::unique_ptr<void, FreeCode> code_;
};

}  // namespace glimpse
