#include "model/language_model.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/check.h"
#include "model/rotary.h"

namespace glimpse {
namespace {

void trace_tensor(const TraceFunction& trace, std::string_view name, const Tensor& value) {
  if (trace) trace(name, -1, value);
}

constexpr int64_t kGpuScratchRows = 256;

// Words of a step's numbers when each part is as large as it may be.
int64_t max_input_words(const StepLimits& limits) {
  constexpr int64_t kWordsPerRow = 6;  // token, three positions, slot, row of a visual token
  return kWordsPerRow * limits.max_rows + (limits.max_sequences + 1) +
         limits.max_sequences * (1 + limits.max_pages) + limits.max_outputs +
         limits.max_sampling_words;
}

// While one step's numbers are read the next one's arrive.
constexpr int64_t kTurns = 2;

template <typename T>
std::span<const std::byte> bytes_of_vector(const std::vector<T>& values, size_t count) {
  return std::as_bytes(std::span(values).first(count));
}

}  // namespace

DType activation_dtype(Arithmetic arithmetic) {
  check(arithmetic != Arithmetic::automatic, "the arithmetic was not chosen");
  return arithmetic == Arithmetic::exact ? DType::f32 : DType::bf16;
}

LanguageActivations LanguageActivations::carve(const TextConfig& config, Arithmetic arithmetic,
                                               int64_t max_rows, Arena& arena) {
  const DType dtype = activation_dtype(arithmetic);
  // Memory for whichever of two tensors is alive.
  const auto share = [&](int64_t columns_a, int64_t columns_b, Tensor& a, Tensor& b) {
    const Tensor memory = arena.allocate(dtype, {max_rows * std::max(columns_a, columns_b)});
    a = Tensor(memory.raw(), dtype, memory.device(), {max_rows, columns_a});
    b = Tensor(memory.raw(), dtype, memory.device(), {max_rows, columns_b});
  };
  LanguageActivations act;
  DecoderActivations& layer = act.decoder;
  layer.hidden = arena.allocate(DType::f32, {max_rows, config.hidden_size});
  share(config.hidden_size, config.num_heads * config.head_dim, layer.normed, layer.attended);
  share(config.qkv_size(), config.intermediate_size, layer.qkv, layer.intermediate);
  // A GPU needs it only where its tensor cores cannot be used.
  const int64_t scratch_rows =
      arena.device() == Device::cpu ? max_rows : std::min(max_rows, kGpuScratchRows);
  layer.gate_up = arena.allocate(dtype, {scratch_rows, 2 * config.intermediate_size});
  if (arithmetic == Arithmetic::w8a8) {
    const int64_t widest = std::max(
        {config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size});
    layer.quantized.codes = arena.allocate(DType::f8_e4m3, {max_rows, widest});
    // An even number of rows: two neighbours' scales are read at once.
    layer.quantized.scales = arena.allocate(
        DType::f32, {(widest + kScaleBlock - 1) / kScaleBlock, (max_rows + 1) / 2 * 2});
  }
  act.cosines = arena.allocate(DType::f32, {max_rows, config.head_dim / 2});
  act.sines = arena.allocate(DType::f32, {max_rows, config.head_dim / 2});
  return act;
}

LanguageActivations LanguageActivations::first_rows(int64_t rows) const {
  check(rows <= max_rows(), "the batch has more rows than its activations");
  LanguageActivations part = *this;
  DecoderActivations& layer = part.decoder;
  for (Tensor* tensor : {&layer.hidden, &layer.normed, &layer.qkv, &layer.attended, &layer.gate_up,
                         &layer.intermediate, &part.cosines, &part.sines}) {
    *tensor = tensor->slice(0, 0, std::min(rows, tensor->size(0)));
  }
  return part;
}

StepBuffers StepBuffers::carve(const TextConfig& config, Arithmetic arithmetic,
                               const StepLimits& limits, Arena& arena) {
  const int64_t outputs = limits.max_outputs;
  StepBuffers buffers;
  buffers.inputs = arena.allocate(DType::i32, {kTurns, max_input_words(limits)});
  buffers.output_normed =
      arena.allocate(activation_dtype(arithmetic), {outputs, config.hidden_size});
  buffers.logits = arena.allocate(DType::f32, {outputs, config.vocab_size});
  buffers.inverse_frequencies = arena.allocate(DType::f32, {config.head_dim / 2});
  buffers.rotary_axes = arena.allocate(DType::i32, {config.head_dim / 2});
  return buffers;
}

LanguageModel::LanguageModel(Backend& backend, const TextConfig& config,
                             const LanguageWeights& weights, Arithmetic arithmetic,
                             const StepLimits& limits, Arena& arena)
    : backend_(backend),
      config_(config),
      weights_(weights),
      limits_(limits),
      buffers_(StepBuffers::carve(config, arithmetic, limits, arena)),
      staging_(static_cast<size_t>(max_input_words(limits))) {
  check(!arena.is_measuring(), "a model needs memory; StepBuffers::carve() measures");
  const std::vector<float> frequencies = inverse_frequencies(config.rope_theta, config.head_dim);
  const std::vector<int32_t> axes = rotary_axes(config);
  backend.upload(bytes_of_vector(frequencies, frequencies.size()), buffers_.inverse_frequencies);
  backend.upload(bytes_of_vector(axes, axes.size()), buffers_.rotary_axes);
}

Tensor LanguageModel::forward(const Batch& batch, std::span<const PagedKv> kv,
                              const LanguageActivations& act, const TraceFunction& trace) {
  const int64_t words = pack(batch);
  backend_.upload(packed(words), line_of_inputs(words));
  return run(batch, kv, act, trace);
}

Tensor LanguageModel::replay(const Batch& batch, std::span<const PagedKv> kv,
                             const LanguageActivations& act) {
  const int64_t words = pack(batch);
  backend_.upload_early(packed(words), line_of_inputs(words));
  backend_.replay(static_cast<uint64_t>(batch.num_rows() * kTurns + turn_),
                  [&] { static_cast<void>(run(batch, kv, act, {})); });
  return buffers_.logits.slice(0, 0, batch.num_outputs());
}

// Copies every part behind the one before. Where a part begins follows from the shape of the batch
// alone.
int64_t LanguageModel::pack(const Batch& batch) {
  check(batch.num_rows() > 0 && batch.num_rows() <= limits_.max_rows, "a batch has too many rows");
  check(batch.num_sequences() <= limits_.max_sequences, "a batch has too many sequences");
  check(batch.num_outputs() <= limits_.max_outputs, "a batch has too many outputs");
  turn_ = (turn_ + 1) % kTurns;
  const Tensor line = line_of_inputs(buffers_.inputs.size(1));
  int64_t used = 0;
  const auto add = [&](std::span<const int32_t> values, int64_t expected) {
    check(static_cast<int64_t>(values.size()) == expected,
          "a part of the batch has the wrong size");
    std::copy(values.begin(), values.end(), staging_.begin() + used);
    const Tensor view = line.slice(0, used, expected);
    used += expected;
    return view;
  };
  const int64_t rows = batch.num_rows();
  const int64_t sequences = batch.num_sequences();
  StepInputs inputs;
  inputs.token_ids = add(batch.token_ids, rows);
  for (const auto& axis : batch.positions) inputs.positions = add(axis, rows);
  inputs.positions = line.slice(0, used - 3 * rows, 3 * rows).view({3, rows});
  inputs.slots = add(batch.slots, rows);
  inputs.spans.query_begin = add(batch.query_begin, sequences + 1);
  inputs.spans.context_length = add(batch.context_length, sequences);
  inputs.spans.page_table =
      add(batch.page_table, sequences * limits_.max_pages).view({sequences, limits_.max_pages});
  inputs.spans.max_queries = batch.max_queries;
  inputs.spans.max_context = batch.max_context;
  inputs.output_rows = add(batch.output_rows, batch.num_outputs());
  for (const VisualPiece& piece : batch.pictures) {
    inputs.visual_rows.push_back(add(piece.rows, piece.tokens.num_tokens()));
  }
  const auto sampling_words = static_cast<int64_t>(batch.sampling.size());
  check(sampling_words <= limits_.max_sampling_words, "a batch has too many sampling numbers");
  inputs.sampling = add(batch.sampling, sampling_words);
  inputs_ = std::move(inputs);
  return used;
}

std::span<const std::byte> LanguageModel::packed(int64_t words) const {
  return std::as_bytes(std::span(staging_).first(static_cast<size_t>(words)));
}

Tensor LanguageModel::line_of_inputs(int64_t words) const {
  return buffers_.inputs.slice(0, turn_, 1).view({buffers_.inputs.size(1)}).slice(0, 0, words);
}

// Token embeddings, with those of pictures in their places, and the angles.
void LanguageModel::embed(const Batch& batch, const LanguageActivations& act) {
  backend_.begin_step({.table = weights_.embed_tokens,
                       .ids = inputs_.token_ids,
                       .chosen = batch.chosen,
                       .positions = inputs_.positions,
                       .inverse_frequencies = buffers_.inverse_frequencies,
                       .axes = buffers_.rotary_axes},
                      act.decoder.hidden, act.cosines, act.sines);
  for (size_t i = 0; i < batch.pictures.size(); ++i) {
    backend_.scatter_rows(batch.pictures[i].tokens.embeddings, inputs_.visual_rows[i],
                          act.decoder.hidden);
  }
}

Tensor LanguageModel::run(const Batch& batch, std::span<const PagedKv> kv,
                          const LanguageActivations& all_rows, const TraceFunction& trace) {
  const LanguageActivations act = all_rows.first_rows(batch.num_rows());
  embed(batch, act);
  trace_tensor(trace, "text.inputs_embeds", act.decoder.hidden);

  std::vector<DeepstackRows> deepstack;
  for (size_t i = 0; i < batch.pictures.size(); ++i) {
    deepstack.push_back({inputs_.visual_rows[i], batch.pictures[i].tokens.deepstack});
  }
  const DecoderInputs inputs{.cosines = act.cosines,
                             .sines = act.sines,
                             .slots = inputs_.slots,
                             .spans = inputs_.spans,
                             .kv = kv,
                             .deepstack = deepstack};
  backend_.decoder_layers(config_.shape(), weights_.layers, inputs, act.decoder, trace);

  const int64_t outputs = batch.num_outputs();
  const Tensor logits = buffers_.logits.slice(0, 0, outputs);
  if (outputs == 0) return logits;
  const Tensor normed = buffers_.output_normed.slice(0, 0, outputs);
  backend_.rms_norm_rows(act.decoder.hidden, inputs_.output_rows, weights_.norm,
                         config_.rms_norm_eps, normed);
  trace_tensor(trace, "text.norm", normed);
  backend_.linear(normed, weights_.lm_head, logits);
  trace_tensor(trace, "logits", logits);
  return logits;
}

}  // namespace glimpse
