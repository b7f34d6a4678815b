// The decoder: embed tokens, put pictures in their places, run the layers, and give logits of the
// rows that were asked for. All memory of a step is fixed in size and address before the first one;
// addresses depend on the shape of the batch alone, so a step can be replayed.
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
  Tensor inputs;               // [words] i32: one upload a step, see StepInputs
  Tensor output_hidden;        // [max_outputs, hidden] f32
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
  std::vector<Tensor> visual_rows;  // per picture piece [n] i32
};

/// Runs on one thread. `weights` must outlive it.
class LanguageModel {
 public:
  /// Takes its step buffers from `arena`.
  LanguageModel(Backend& backend, const TextConfig& config, const LanguageWeights& weights,
                Arithmetic arithmetic, const StepLimits& limits, Arena& arena);

  /// One step: stage() and run(). Returns logits [num_outputs, vocab] f32 on the device, valid
  /// until the next step. `kv`: one per layer.
  Tensor forward(const Batch& batch, std::span<const PagedKv> kv, const LanguageActivations& act,
                 const TraceFunction& trace = {});

  /// Uploads the batch's numbers. Throws Error(internal) when it exceeds the limits.
  void stage(const Batch& batch);
  /// Issues the operations of the batch staged last; what run inside Backend::replay() recorded may
  /// be replayed for every later batch of the same shape and bounds without pictures.
  Tensor run(const Batch& batch, std::span<const PagedKv> kv, const LanguageActivations& act,
             const TraceFunction& trace = {});

  /// Where run() leaves the logits of a batch with `num_outputs` outputs.
  [[nodiscard]] Tensor logits(int64_t num_outputs) const {
    return buffers_.logits.slice(0, 0, num_outputs);
  }
  [[nodiscard]] const StepLimits& limits() const { return limits_; }
  [[nodiscard]] const TextConfig& config() const { return config_; }

 private:
  [[nodiscard]] StepInputs pack(const Batch& batch);
  void embed(const Batch& batch, const LanguageActivations& act);

  Backend& backend_;
  TextConfig config_;
  const LanguageWeights& weights_;
  StepLimits limits_;
  StepBuffers buffers_;
  std::vector<int32_t> staging_;  // the host side of buffers_.inputs
  StepInputs inputs_;
};

}  // namespace glimpse
