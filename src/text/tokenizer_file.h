// What tokenizer.json holds, checked: everything that a Tokenizer does not implement is refused
// here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"

namespace glimpse {

struct AddedToken {
  std::string text;
  TokenId id = -1;
  bool special = false;
};

struct TokenizerFile {
  Vocabulary vocabulary;
  MergeTable merges;
  std::vector<AddedToken> added_tokens;
  std::string split_regex;
  bool normalize_nfc = false;
};

/// Throws Error(bad_model) for a document that contradicts itself or the format, and
/// Error(unsupported) naming what it asks for and Glimpse does not do. `readable_beyond` is how
/// many bytes after the end of `json` may be read: a few dozen save a copy of the document.
[[nodiscard]] TokenizerFile read_tokenizer_file(std::string_view json, size_t readable_beyond);

/// Decodes a vocabulary spelling ("Ġthe") into bytes (" the"), appended to `bytes`. False when a
/// character is not of the byte-level alphabet.
[[nodiscard]] bool append_byte_level(std::string_view spelling, std::string& bytes);

}  // namespace glimpse
