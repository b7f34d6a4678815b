// What one step of the language model computes: rows of tokens of any number of sequences, decode
// rows and prefill chunks alike. Host numbers; LanguageModel uploads them in one copy.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace glimpse {

/// What the vision tower makes of a picture.
struct VisualTokens {
  Tensor embeddings;              // [num_tokens, hidden] activation
  std::vector<Tensor> deepstack;  // per tap [num_tokens, hidden] activation

  [[nodiscard]] int64_t num_tokens() const { return embeddings.size(0); }
  [[nodiscard]] VisualTokens slice(int64_t first, int64_t count) const {
    VisualTokens part{embeddings.slice(0, first, count), deepstack};
    for (Tensor& rows : part.deepstack) rows = rows.slice(0, first, count);
    return part;
  }
};

/// Visual tokens of one picture that stand in this batch, and their rows in it.
struct VisualPiece {
  VisualTokens tokens;
  std::vector<int32_t> rows;  // [tokens.num_tokens()]
};

struct Batch {
  std::vector<int32_t> token_ids;                 // [T]; any valid id at visual tokens and padding;
                                                  // -1 - i stands for chosen[i]
  std::array<std::vector<int32_t>, 3> positions;  // time, height, width, each [T]
  std::vector<int32_t> slots;                     // [T] page * kKvPageTokens + offset; -1: padding
  std::vector<int32_t> query_begin;               // [num_sequences + 1]
  std::vector<int32_t> context_length;            // [num_sequences], this step's tokens included
  std::vector<int32_t> page_table;                // [num_sequences, max_pages of the StepLimits]
  std::vector<int32_t> output_rows;               // [num_outputs]: rows whose logits are wanted
  std::vector<int32_t> sampling;                  // numbers of the sampler's that travel along
  std::vector<VisualPiece> pictures;
  Tensor chosen;            // [any] i32 on the device: tokens that the host has not seen yet
  int64_t max_queries = 0;  // bound of one sequence's rows
  int64_t max_context = 0;  // bound of context_length

  [[nodiscard]] int64_t num_rows() const { return static_cast<int64_t>(token_ids.size()); }
  [[nodiscard]] int64_t num_sequences() const {
    return static_cast<int64_t>(context_length.size());
  }
  [[nodiscard]] int64_t num_outputs() const { return static_cast<int64_t>(output_rows.size()); }
};

}  // namespace glimpse
