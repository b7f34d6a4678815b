// The decoder: embed tokens, put pictures in their places, run the layers, and give logits of the
// rows that were asked for. All memory of a step is fixed in size and address before the first one;
// addresses depend on the shape of the batch and on whose turn it is alone, so a step can be
// replayed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "glimpse/options.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/weights.h"

namespace glimpse {

/// Dtype of everything between two operations but the residual stream, which is always f32.
[[nodiscard]] DType activation_dtype(Arithmetic arithmetic);

/// The most that one step may hold.
struct StepLimits {
  int64_t max_rows = 0;
  int64_t max_sequences = 0;
  int64_t max_pages = 0;  // of one sequence
  int64_t max_outputs = 0;
  int64_t max_sampling_words = 0;
};

/// Activations of a pass over at most `max_rows` rows. A small set for decode steps and a large one
/// for prefill may exist side by side: the large one shares its memory with the vision tower.
struct LanguageActivations {
  DecoderActivations decoder;
  Tensor cosines;  // [max_rows, head_dim / 2] f32
  Tensor sines;    // the same

  [[nodiscard]] static LanguageActivations carve(const TextConfig& config, Arithmetic arithmetic,
                                                 int64_t max_rows, Arena& arena);
  [[nodiscard]] int64_t max_rows() const { return decoder.hidden.size(0); }
  /// The first `rows` of each.
  [[nodiscard]] LanguageActivations first_rows(int64_t rows) const;
};

/// What every step reads and writes besides activations.
struct StepBuffers {
  Tensor inputs;               // [2, words] i32: one upload a step, by turns; see StepInputs
  Tensor output_normed;        // [max_outputs, hidden] activation
  Tensor logits;               // [max_outputs, vocab] f32
  Tensor inverse_frequencies;  // [head_dim / 2] f32
  Tensor rotary_axes;          // [head_dim / 2] i32

  [[nodiscard]] static StepBuffers carve(const TextConfig& config, Arithmetic arithmetic,
                                         const StepLimits& limits, Arena& arena);
};

/// Device views of one batch's numbers.
struct StepInputs {
  Tensor token_ids;  // [T] i32
  Tensor positions;  // [3, T] i32
  Tensor slots;      // [T] i32
  PagedSpans spans;
  Tensor output_rows;               // [num_outputs] i32
  Tensor sampling;                  // [words] i32
  std::vector<Tensor> visual_rows;  // per picture piece [n] i32
};

/// Runs on one thread. `weights` must outlive it.
class LanguageModel {
 public:
  /// Takes its step buffers from `arena`.
  LanguageModel(Backend& backend, const TextConfig& config, const LanguageWeights& weights,
                Arithmetic arithmetic, const StepLimits& limits, Arena& arena);

  /// One step. Returns logits [num_outputs, vocab] f32 on the device, valid until the next step.
  /// `kv`: one per layer. Throws Error(internal) when the batch exceeds the limits.
  Tensor forward(const Batch& batch, std::span<const PagedKv> kv, const LanguageActivations& act,
                 const TraceFunction& trace = {});
  /// The same for a batch whose shape and bounds follow from its number of rows, without pictures:
  /// recorded the first two times such a number is met, and replayed from then on. Its numbers go
  /// up while the step before runs; all steps before that one must be done.
  Tensor replay(const Batch& batch, std::span<const PagedKv> kv, const LanguageActivations& act);

  /// Where the `sampling` of the last batch is.
  [[nodiscard]] const Tensor& sampling() const { return inputs_.sampling; }
  [[nodiscard]] const StepLimits& limits() const { return limits_; }
  [[nodiscard]] const TextConfig& config() const { return config_; }

 private:
  /// Copies the batch's numbers to the host side of the next turn's inputs, and views them on the
  /// device. Returns how many words there are.
  int64_t pack(const Batch& batch);
  [[nodiscard]] std::span<const std::byte> packed(int64_t words) const;
  [[nodiscard]] Tensor line_of_inputs(int64_t words) const;
  /// Issues the operations of the batch packed last.
  Tensor run(const Batch& batch, std::span<const PagedKv> kv, const LanguageActivations& act,
             const TraceFunction& trace);
  void embed(const Batch& batch, const LanguageActivations& act);

  Backend& backend_;
  TextConfig config_;
  const LanguageWeights& weights_;
  StepLimits limits_;
  StepBuffers buffers_;
  std::vector<int32_t> staging_;  // the host side of a line of buffers_.inputs
  int64_t turn_ = 0;              // the line of the batch packed last
  StepInputs inputs_;
};

}  // namespace glimpse
