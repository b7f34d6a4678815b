// Byte-level BPE as tokenizer.json describes it: Unicode NFC, the checkpoint's own split pattern,
// merges by rank, and added tokens recognised only where the caller says so.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace glimpse {

using TokenId = int32_t;

/// A piece of prompt text and whether control tokens may be recognised in it. Text that came from
/// a user never is trusted, so it cannot smuggle in "<|im_end|>".
struct TextPiece {
  std::string text;
  bool may_hold_special_tokens = false;
};

/// Immutable after construction; all methods are const and thread-safe.
class Tokenizer {
 public:
  /// Reads tokenizer.json. Throws Error(not_found), Error(bad_model) or Error(unsupported) naming
  /// the construct that this tokenizer does not know.
  explicit Tokenizer(const std::filesystem::path& path);
  /// The same from the document's text (fuzzing, tests).
  static Tokenizer from_json(std::string_view json);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Encodes with every added token recognised: what transformers' encode() gives.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text) const;
  /// Encodes neighbouring pieces as one text; added tokens are recognised only where every byte of
  /// them lies in pieces that may hold them. Ordinary text merges across pieces as if they were
  /// one.
  [[nodiscard]] std::vector<TokenId> encode(std::span<const TextPiece> pieces) const;

  /// The bytes of the tokens, one after another; may end inside a character. Ids outside the
  /// vocabulary (the padding rows of an embedding) give nothing.
  [[nodiscard]] std::string decode_bytes(std::span<const TokenId> ids) const;
  /// The same as text: invalid UTF-8 is replaced by U+FFFD as Python's errors="replace" does.
  /// Tokens marked special are left out when `skip_special`.
  [[nodiscard]] std::string decode(std::span<const TokenId> ids, bool skip_special) const;

  /// The raw bytes of one token; empty for an unknown id.
  [[nodiscard]] std::string_view token_bytes(TokenId id) const;
  /// True for added tokens marked "special" (<|im_end|>), false for <think> and ordinary tokens.
  [[nodiscard]] bool is_special(TokenId id) const;
  /// True for every added token, special or not.
  [[nodiscard]] bool is_added(TokenId id) const;
  /// The id of an added token or of a vocabulary entry spelt exactly so; -1 when there is none.
  [[nodiscard]] TokenId find(std::string_view token) const;
  /// One past the largest id.
  [[nodiscard]] TokenId vocabulary_size() const;

 private:
  Tokenizer();
  struct Data;
  std::unique_ptr<Data> data_;
};

}  // namespace glimpse
