// From logits to tokens for all rows of a step at once, on the device: this class keeps the fixed
// device tables that Backend::sample() reads and fills them from each request's settings.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "text/tokenizer.h"

namespace glimpse {

/// Most alternatives of one token that can be reported.
inline constexpr int kMaxTopLogProbs = 20;

/// How the tokens of one request are chosen: SamplingOptions with nothing left open.
struct RowSampling {
  float temperature = 0;
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
  int logprobs = -1;

  [[nodiscard]] bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};

/// One row of logits.
struct SamplingRow {
  const RowSampling* settings = nullptr;
  int64_t token_index = 0;            // of the token to choose, counted from the answer's first
  int line = 0;                       // the sequence's line in the table of counts
  std::span<const uint32_t> allowed;  // [ceil(vocab / 32)] bits; empty: everything is allowed
};

struct TokenChance {
  TokenId token = 0;
  float log_prob = 0;
};

struct SampledToken {
  TokenChance chosen;
  std::vector<TokenChance> top;  // as many as the row asked for, best first
};

/// Device memory of a sampler.
struct SamplerBuffers {
  Tensor columns;        // [columns * rows] i32: the columns of SamplingRows one after another
  Tensor token_counts;   // [lines, vocab] u16
  Tensor allowed;        // [rows, ceil(vocab / 32)] u32
  Tensor chosen;         // [2 * rows] i32: ids, then the bits of their log-probabilities
  Tensor top_ids;        // [rows * kMaxTopLogProbs] i32
  Tensor top_log_probs;  // [rows * kMaxTopLogProbs] f32

  [[nodiscard]] static SamplerBuffers carve(int64_t vocab_size, int64_t max_rows, Arena& arena);
};

/// Runs on the engine's thread.
class Sampler {
 public:
  /// Takes its tables from `arena`.
  Sampler(Backend& backend, int64_t vocab_size, int64_t max_rows, Arena& arena);

  /// A sequence with penalties takes a line: tokens before `num_prompt_tokens` count as prompt.
  void start_line(int line, std::span<const TokenId> tokens, int64_t num_prompt_tokens);
  /// Chooses one token per row of `logits` [rows, vocab], which are overwritten.
  [[nodiscard]] std::vector<SampledToken> sample(const Tensor& logits,
                                                 std::span<const SamplingRow> rows);

 private:
  [[nodiscard]] SamplingRows upload_rows(std::span<const SamplingRow> rows);
  void download_top(const Tensor& logits, std::span<const SamplingRow> rows,
                    std::vector<SampledToken>& sampled);

  Backend& backend_;
  int64_t vocab_size_;
  SamplerBuffers buffers_;
  std::vector<int32_t> staging_;
  std::vector<uint32_t> mask_staging_;
};

}  // namespace glimpse
