// One sequence as the scheduler sees it: tokens, where their keys and values are, and the pictures
// among them. No tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "base/sha256.h"
#include "runtime/picture_cache.h"
#include "text/tokenizer.h"

namespace glimpse {

/// Index of a page of the KV cache.
using PageId = int32_t;
/// Identity of a full page: all tokens and pictures up to its end (runtime/page_keys.h).
using PageKey = Sha256;

/// A run of visual tokens.
struct SequencePicture {
  int64_t first = 0;
  int64_t count = 0;
  Sha256 content{};
  /// The pixels are in host memory, so that the vision tower can run.
  bool has_pixels = false;
  /// Pixels were dropped, are needed again and have been asked for.
  bool pixels_wanted = false;
  /// Held from shortly before its first token is computed until its last one is.
  PictureCache::Entry* entry = nullptr;

  [[nodiscard]] int64_t end() const { return first + count; }
};

struct Sequence {
  uint64_t arrival = 0;         // unique and rising: who came first is served first
  std::vector<TokenId> tokens;  // prompt, and the answer so far
  int64_t num_prompt_tokens = 0;
  std::vector<SequencePicture> pictures;  // in order of `first`

  // The scheduler's own.
  int64_t num_computed = 0;   // tokens whose keys and values are in the cache
  int64_t num_matched = 0;    // of these, found in the cache when the sequence was first admitted
  std::vector<PageId> pages;  // of tokens [0, num_computed) and of what the next step computes
  std::vector<PageKey> page_keys;  // of the full pages among `tokens`, as far as known
  int64_t num_published = 0;       // pages that others may find
  int line = -1;                   // row of the tables for running sequences; -1: waiting
  int num_preemptions = 0;

  [[nodiscard]] int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  [[nodiscard]] int64_t num_remaining() const { return num_tokens() - num_computed; }
  /// One text token is left to compute: a decode step.
  [[nodiscard]] bool is_decoding() const {
    return num_remaining() == 1 && (pictures.empty() || pictures.back().end() < num_tokens());
  }
};

/// Pages that `num_tokens` tokens take.
[[nodiscard]] constexpr int64_t pages_of(int64_t num_tokens) {
  return (num_tokens + kKvPageTokens - 1) / kKvPageTokens;
}

}  // namespace glimpse
