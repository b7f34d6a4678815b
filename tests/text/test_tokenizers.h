// Tokenizers that several tests use.
#pragma once

#include <string>

#include <fmt/format.h>

#include "base/json.h"
#include "paths.h"
#include "text/tokenizer.h"

namespace glimpse::testing {

inline std::filesystem::path qwen_tokenizer_path() {
  return unpacked_golden_dir() / "qwen-tokenizer" / "tokenizer.json";
}

inline const Tokenizer& demo_tokenizer() {
  static const Tokenizer tokenizer(demo_model_dir() / "tokenizer.json");
  return tokenizer;
}

/// A document with the smallest legal sections; tests change what they are about.
inline Json small_tokenizer_json() {
  return Json::parse(R"({
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\w+|\\s+|[^\\w\\s]+"}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
    "added_tokens": [
      {"id": 9, "content": "<|end|>", "special": true},
      {"id": 10, "content": "<|end|><|end|>", "special": false}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "aa": 2, "ab": 3, "aab": 4, "Ġ": 5, "<": 6, "|": 7, "é": 8},
              "merges": ["a a", ["a", "b"], "aa b"]}
  })");
}

}  // namespace glimpse::testing
