// From logits to tokens for all rows of a step at once, on the device: this class keeps the fixed
// tables that Backend::sample() reads and writes and fills them from each request's settings. The
// tokens come back through memory that the device writes itself: a copy of a few bytes would hold
// up the next step for 10 us.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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
  int64_t token_index = 0;  // of the token to choose, counted from the answer's first
  int line = 0;             // the sequence's line in the table of counts
  bool has_mask = false;
};

struct TokenChance {
  TokenId token = 0;
  float log_prob = 0;
};

struct SampledToken {
  TokenChance chosen;
  std::vector<TokenChance> top;  // as many as the row asked for, best first
};

/// Tokens that are being chosen; the sampler remembers two such steps.
struct ChosenTokens {
  Backend::Mark done = 0;
  size_t turn = 0;
  int64_t most_top = 0;      // alternatives of each row
  std::vector<int> num_top;  // of each row, those that it asked for
};

/// What the host reads of a step, in memory that it shares with the device.
struct SamplerReport {
  Tensor ids;            // [rows] i32
  Tensor log_probs;      // [rows] f32
  Tensor top_ids;        // [rows * kMaxTopLogProbs] i32
  Tensor top_log_probs;  // [rows * kMaxTopLogProbs] f32

  [[nodiscard]] static SamplerReport carve(int64_t max_rows, Arena& arena);
};
/// Steps take turns: one is read while the next one is written.
using SamplerReports = std::array<SamplerReport, 2>;

/// Device memory of a sampler.
struct SamplerBuffers {
  Tensor token_counts;     // [lines, vocab] u16
  Tensor allowed;          // [rows, ceil(vocab / 32)] u32
  Tensor chosen;           // [rows] i32
  SamplerReports reports;  // where the device's memory is the host's

  [[nodiscard]] static SamplerBuffers carve(int64_t vocab_size, int64_t max_rows, Arena& arena);
};

/// Runs on the engine's thread. A step's numbers travel with its batch: pack(), then choose() with
/// where they arrived, then read(), until which one more step may be chosen.
class Sampler {
 public:
  /// Takes its tables from `arena`.
  Sampler(Backend& backend, int64_t vocab_size, int64_t max_rows, Arena& arena);

  /// Words of pack() for so many rows.
  [[nodiscard]] static int64_t num_words(int64_t rows);
  [[nodiscard]] static std::vector<int32_t> pack(std::span<const SamplingRow> rows);
  /// A sequence with penalties takes a line: tokens before `num_prompt_tokens` count as prompt.
  void start_line(int line, std::span<const TokenId> tokens, int64_t num_prompt_tokens);
  /// The masks of the rows that have one, [ceil(vocab / 32)] bits each; empty: all are allowed.
  void upload_masks(std::span<const std::span<const uint32_t>> masks);
  /// Begins to choose one token per row of `logits` [rows, vocab].
  [[nodiscard]] ChosenTokens choose(const Tensor& logits, const Tensor& packed,
                                    std::span<const SamplingRow> rows);
  /// Waits for them.
  [[nodiscard]] std::vector<SampledToken> read(const ChosenTokens& chosen);
  /// The ids of the last choose(), on the device.
  [[nodiscard]] const Tensor& chosen() const { return buffers_.chosen; }

 private:
  [[nodiscard]] SamplingRows columns_of(const Tensor& packed,
                                        std::span<const SamplingRow> rows) const;

  Backend& backend_;
  int64_t vocab_size_;
  SamplerBuffers buffers_;
  std::optional<Arena> shared_;  // with a device of its own memory
  SamplerReports reports_;
  size_t turn_ = 0;
  std::vector<uint32_t> mask_staging_;
};

}  // namespace glimpse
