// The public operations: each checks what its comment in backend.h promises and calls the backend.
// Nothing to do (no rows) is decided here once, so that no kernel sees an empty launch.
#include "backend/backend.h"

#include <algorithm>

namespace glimpse {
namespace {

bool is_activation(const Tensor& x) {
  return x.dtype() == DType::f32 || x.dtype() == DType::bf16;
}

void require(bool condition, std::string_view operation, std::string_view what) {
  if (!condition) [[unlikely]]
    check(false, fmt::format("{}: {}", operation, what));
}

// The checks of one operation, named in every message.
class Checker {
 public:
  Checker(const Backend& backend, std::string_view operation)
      : device_(backend.device()), operation_(operation) {}

  void activation(const Tensor& x, std::string_view name) const {
    view(x, name);
    require(is_activation(x), operation_,
            fmt::format("{} is {}, not f32 or bf16", name, x.describe()));
  }
  void is(const Tensor& x, DType dtype, std::string_view name) const {
    view(x, name);
    require(x.dtype() == dtype, operation_,
            fmt::format("{} is {}, not {}", name, x.describe(), name_of(dtype)));
  }
  void rank(const Tensor& x, int rank, std::string_view name) const {
    require(x.rank() == rank, operation_,
            fmt::format("{} is {}, not of rank {}", name, x.describe(), rank));
  }
  void vector(const Tensor& x, DType dtype, int64_t size, std::string_view name) const {
    is(x, dtype, name);
    require(x.rank() == 1 && x.size(0) == size, operation_,
            fmt::format("{} is {}, not [{}]", name, x.describe(), size));
  }
  void contiguous(const Tensor& x, std::string_view name) const {
    require(x.is_contiguous(), operation_, fmt::format("{} is not contiguous", name));
  }
  void same_shape(const Tensor& a, const Tensor& b) const {
    require(std::ranges::equal(a.shape(), b.shape()), operation_,
            fmt::format("{} and {} differ in shape", a.describe(), b.describe()));
  }
  void equal(int64_t a, int64_t b, std::string_view what) const {
    require(a == b, operation_, fmt::format("{}: {} and {}", what, a, b));
  }
  void that(bool condition, std::string_view what) const { require(condition, operation_, what); }

 private:
  void view(const Tensor& x, std::string_view name) const {
    require(!x.empty(), operation_, fmt::format("{} is empty", name));
    require(x.device() == device_, operation_, fmt::format("{} is on another device", name));
    require(x.size(-1) <= 1 || x.stride(-1) == 1, operation_,
            fmt::format("the innermost stride of {} is not 1", name));
    if (x.rank() != 3) (void)x.as_rows();  // throws where the outer strides are uneven
  }

  Device device_;
  std::string_view operation_;
};

void check_linear(const Checker& c, const Tensor& x, const LinearWeight& weight, const Tensor& out,
                  int64_t out_features) {
  c.activation(x, "x");
  c.activation(out, "out");
  c.rank(x, 2, "x");
  c.rank(out, 2, "out");
  c.that(!weight.empty(), "the weight is empty");
  c.equal(x.size(1), weight.in_features(), "columns of x and of the weight");
  c.equal(out.size(1), out_features, "columns of out and rows of the weight");
  c.equal(x.size(0), out.size(0), "rows of x and of out");
  for (const LinearPart& part : weight.parts) {
    if (part.weight.dtype() != DType::f8_e4m3) continue;
    c.that(!part.scales.empty(), "an FP8 weight has no scales");
    c.equal(part.scales.size(0), (part.weight.size(0) + kScaleBlock - 1) / kScaleBlock,
            "scale rows");
    c.equal(part.scales.size(1), (part.weight.size(1) + kScaleBlock - 1) / kScaleBlock,
            "scale columns");
  }
}

void check_quantized(const Checker& c, const Tensor& x, const QuantizedActivations& quantized) {
  if (quantized.empty()) return;
  c.is(quantized.codes, DType::f8_e4m3, "the codes of x");
  c.is(quantized.scales, DType::f32, "the scales of x");
  c.rank(quantized.codes, 2, "the codes of x");
  c.rank(quantized.scales, 2, "the scales of x");
  c.that(quantized.codes.size(0) >= x.size(0) && quantized.codes.size(1) >= x.size(1) &&
             quantized.scales.size(1) >= x.size(0) &&
             quantized.scales.size(0) * kScaleBlock >= x.size(1),
         "there is no room for the quantised activations");
}

void check_rows(const Checker& c, const Tensor& rows, const Tensor& indices, const Tensor& out) {
  c.activation(rows, "rows");
  c.activation(out, "out");
  c.rank(rows, 2, "rows");
  c.rank(out, 2, "out");
  c.vector(indices, DType::i32, rows.size(0), "indices");
  c.equal(rows.size(1), out.size(1), "columns of rows and of out");
}

void check_rotary(const Checker& c, const Tensor& x, const Tensor& cosines, const Tensor& sines) {
  c.is(cosines, DType::f32, "cosines");
  c.is(sines, DType::f32, "sines");
  c.same_shape(cosines, sines);
  c.contiguous(cosines, "cosines");
  c.contiguous(sines, "sines");
  c.equal(cosines.size(0), x.size(0), "rows of cosines and of x");
  c.equal(2 * cosines.size(1), x.size(-1), "twice the columns of cosines and the head size");
}

void check_rotary_table(const Checker& c, const Tensor& positions,
                        const Tensor& inverse_frequencies, const Tensor& axes,
                        const Tensor& cosines, const Tensor& sines) {
  c.is(positions, DType::i32, "positions");
  c.rank(positions, 2, "positions");
  c.is(cosines, DType::f32, "cosines");
  c.rank(cosines, 2, "cosines");
  c.same_shape(cosines, sines);
  c.vector(inverse_frequencies, DType::f32, cosines.size(1), "inverse_frequencies");
  c.vector(axes, DType::i32, cosines.size(1), "axes");
  c.equal(positions.size(1), cosines.size(0), "columns of positions and rows of cosines");
}

void check_kv(const Checker& c, const PagedKv& kv) {
  c.rank(kv.keys, 4, "keys");
  c.same_shape(kv.keys, kv.values);
  c.contiguous(kv.keys, "keys");
  c.contiguous(kv.values, "values");
  c.equal(kv.keys.size(2), kKvPageTokens, "tokens of a page");
  if (kv.keys.dtype() != DType::f8_e4m3) return;
  c.is(kv.key_scales, DType::f32, "key_scales");
  c.is(kv.value_scales, DType::f32, "value_scales");
  c.equal(kv.key_scales.num_elements() * kv.keys.size(3), kv.keys.num_elements(), "key scales");
  c.equal(kv.value_scales.num_elements() * kv.keys.size(3), kv.keys.num_elements(), "value scales");
}

}  // namespace

void Backend::copy(Tensor from, Tensor to) {
  const Checker c(*this, "copy");
  c.same_shape(from, to);
  if (from.num_elements() == 0) return;
  c.that(from.dtype() == to.dtype() || (is_activation(from) && is_activation(to)),
         "only f32 and bf16 are converted");
  do_copy(from, to);
}

void Backend::gather_rows(Tensor table, Tensor indices, Tensor out) {
  const Checker c(*this, "gather_rows");
  c.rank(table, 2, "table");
  c.rank(out, 2, "out");
  c.that(table.dtype() == DType::f32 || table.dtype() == DType::f16 || table.dtype() == DType::bf16,
         "the table is not f32, f16 or bf16");
  c.activation(out, "out");
  c.vector(indices, DType::i32, out.size(0), "indices");
  c.equal(table.size(1), out.size(1), "columns of table and of out");
  if (out.size(0) > 0) do_gather_rows(table, indices, out);
}

void Backend::begin_step(const StepBeginning& from, Tensor hidden, Tensor cosines, Tensor sines) {
  const Checker c(*this, "begin_step");
  c.rank(from.table, 2, "table");
  c.rank(hidden, 2, "hidden");
  c.that(from.table.dtype() == DType::f32 || from.table.dtype() == DType::f16 ||
             from.table.dtype() == DType::bf16,
         "the table is not f32, f16 or bf16");
  c.is(hidden, DType::f32, "hidden");
  c.vector(from.ids, DType::i32, hidden.size(0), "ids");
  c.equal(from.table.size(1), hidden.size(1), "columns of table and of hidden");
  if (!from.chosen.empty()) c.vector(from.chosen, DType::i32, from.chosen.size(0), "chosen");
  check_rotary_table(c, from.positions, from.inverse_frequencies, from.axes, cosines, sines);
  c.equal(cosines.size(0), hidden.size(0), "rows of cosines and of hidden");
  if (hidden.size(0) > 0) do_begin_step(from, hidden, cosines, sines);
}

void Backend::scatter_rows(Tensor rows, Tensor indices, Tensor out) {
  check_rows(Checker(*this, "scatter_rows"), rows, indices, out);
  if (rows.size(0) > 0) do_scatter_rows(rows, indices, out);
}

void Backend::add_rows(Tensor rows, Tensor indices, Tensor out) {
  check_rows(Checker(*this, "add_rows"), rows, indices, out);
  if (rows.size(0) > 0) do_add_rows(rows, indices, out);
}

void Backend::add(Tensor a, Tensor b, Tensor out) {
  const Checker c(*this, "add");
  c.activation(a, "a");
  c.activation(b, "b");
  c.activation(out, "out");
  c.same_shape(a, b);
  c.same_shape(a, out);
  if (a.num_elements() > 0) do_add(a, b, out);
}

void Backend::blend_rows(Tensor table, Tensor indices, Tensor weights, Tensor out) {
  const Checker c(*this, "blend_rows");
  c.activation(table, "table");
  c.activation(out, "out");
  c.is(indices, DType::i32, "indices");
  c.is(weights, DType::f32, "weights");
  c.rank(indices, 2, "indices");
  c.same_shape(indices, weights);
  c.equal(indices.size(1), 4, "neighbours of a row");
  c.equal(indices.size(0), out.size(0), "rows of indices and of out");
  c.equal(table.size(1), out.size(1), "columns of table and of out");
  c.contiguous(indices, "indices");
  c.contiguous(weights, "weights");
  if (out.size(0) > 0) do_blend_rows(table, indices, weights, out);
}

void Backend::cut_patches(Tensor pixels, Tensor table, const PatchOrder& order, Tensor out) {
  const Checker c(*this, "cut_patches");
  c.is(pixels, DType::u8, "pixels");
  c.is(table, DType::f32, "table");
  c.activation(out, "out");
  c.rank(pixels, 4, "pixels");
  c.rank(table, 2, "table");
  c.rank(out, 2, "out");
  c.contiguous(pixels, "pixels");
  c.contiguous(table, "table");
  c.equal(pixels.size(3), 3, "channels");
  c.equal(table.size(0), 3, "lines of the table");
  c.equal(table.size(1), 256, "columns of the table");
  c.that(order.side > 0 && order.merge > 0 && order.frames > 0, "a patch has pixels");
  c.equal(out.size(1), 3 * order.frames * order.side * order.side, "columns of out");
  const int64_t block = order.side * order.merge;
  c.that(pixels.size(0) > 0 && pixels.size(1) % block == 0 && pixels.size(2) % block == 0,
         "the picture is not made of whole blocks");
  const int64_t slices = (pixels.size(0) + order.frames - 1) / order.frames;
  const int64_t patches = slices * (pixels.size(1) / order.side) * (pixels.size(2) / order.side);
  c.that(order.first >= 0 && order.first + out.size(0) <= patches, "there are not so many patches");
  if (out.size(0) > 0) do_cut_patches(pixels, table, order, out);
}

void Backend::linear(Tensor x, const LinearWeight& weight, Tensor out,
                     const QuantizedActivations& quantized) {
  const Checker c(*this, "linear");
  check_linear(c, x, weight, out, weight.empty() ? 0 : weight.out_features());
  check_quantized(c, x, quantized);
  c.that(!weight.is_interleaved, "an interleaved weight is for linear_silu_mul()");
  if (x.size(0) > 0) do_linear(x, weight, out, quantized);
}

void Backend::linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                         const QuantizedActivations& quantized) {
  const Checker c(*this, "linear_add");
  check_linear(c, x, weight, out, weight.empty() ? 0 : weight.out_features());
  check_quantized(c, x, quantized);
  c.that(!weight.is_interleaved, "an interleaved weight is for linear_silu_mul()");
  if (x.size(0) > 0) do_linear_add(x, weight, out, quantized);
}

void Backend::linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch, Tensor out,
                              const QuantizedActivations& quantized) {
  const Checker c(*this, "linear_silu_mul");
  c.rank(x, 2, "x");
  c.rank(scratch, 2, "scratch");
  const int64_t piece = std::min(x.size(0), scratch.size(0));
  c.that(piece > 0 || x.size(0) == 0, "the scratch has no rows");
  check_linear(c, x.slice(0, 0, piece), gate_up, scratch.slice(0, 0, piece),
               gate_up.empty() ? 0 : gate_up.out_features());
  c.activation(out, "out");
  c.rank(out, 2, "out");
  c.equal(out.size(0), x.size(0), "rows of out and of x");
  c.equal(2 * out.size(1), scratch.size(1), "twice the columns of out and those of scratch");
  c.that(x.dtype() == scratch.dtype() && x.dtype() == out.dtype(), "dtypes differ");
  check_quantized(c, x, quantized);
  if (x.size(0) > 0) do_linear_silu_mul(x, gate_up, scratch, out, quantized);
}

void Backend::linear_gelu(Tensor x, const LinearWeight& weight, GeluKind kind, Tensor out) {
  const Checker c(*this, "linear_gelu");
  check_linear(c, x, weight, out, weight.empty() ? 0 : weight.out_features());
  c.that(!weight.is_interleaved, "an interleaved weight is for linear_silu_mul()");
  c.that(x.dtype() == out.dtype(), "dtypes differ");
  if (x.size(0) > 0) do_linear_gelu(x, weight, kind, out);
}

void Backend::linear_rotate(Tensor x, const LinearWeight& weight, const HeadRotation& rotation,
                            Tensor out) {
  const Checker c(*this, "linear_rotate");
  check_linear(c, x, weight, out, weight.empty() ? 0 : weight.out_features());
  c.that(!weight.is_interleaved, "an interleaved weight is for linear_silu_mul()");
  c.that(x.dtype() == out.dtype(), "dtypes differ");
  c.that(rotation.num_heads > 0 && rotation.cosines.rank() == 2 &&
             rotation.num_heads * 2 * rotation.cosines.size(1) <= out.size(1),
         "the heads to rotate are more than the projection has");
  check_rotary(c, rotation.heads_of(out), rotation.cosines, rotation.sines);
  if (x.size(0) > 0) do_linear_rotate(x, weight, rotation, out);
}

void Backend::rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out) {
  const Checker c(*this, "rms_norm");
  c.activation(x, "x");
  c.activation(out, "out");
  c.same_shape(x, out);
  c.vector(weight, DType::f32, x.size(-1), "weight");
  if (x.num_elements() > 0) do_rms_norm(x, weight, epsilon, out);
}

void Backend::rms_norm_rows(Tensor x, Tensor indices, Tensor weight, float epsilon, Tensor out) {
  const Checker c(*this, "rms_norm_rows");
  c.activation(x, "x");
  c.activation(out, "out");
  c.rank(x, 2, "x");
  c.rank(out, 2, "out");
  c.equal(x.size(1), out.size(1), "columns of x and of out");
  c.vector(indices, DType::i32, out.size(0), "indices");
  c.vector(weight, DType::f32, x.size(1), "weight");
  if (out.size(0) > 0) do_rms_norm_rows(x, indices, weight, epsilon, out);
}

void Backend::layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon, Tensor out) {
  const Checker c(*this, "layer_norm");
  c.activation(x, "x");
  c.activation(out, "out");
  c.same_shape(x, out);
  c.vector(weight, DType::f32, x.size(-1), "weight");
  c.vector(bias, DType::f32, x.size(-1), "bias");
  if (x.num_elements() > 0) do_layer_norm(x, weight, bias, epsilon, out);
}

void Backend::silu_mul(Tensor gate_up, Tensor out) {
  const Checker c(*this, "silu_mul");
  c.activation(gate_up, "gate_up");
  c.activation(out, "out");
  c.rank(gate_up, 2, "gate_up");
  c.rank(out, 2, "out");
  c.that(gate_up.dtype() == out.dtype(), "dtypes differ");
  c.equal(gate_up.size(0), out.size(0), "rows");
  c.equal(gate_up.size(1), 2 * out.size(1), "columns of gate_up and twice those of out");
  if (out.num_elements() > 0) do_silu_mul(gate_up, out);
}

void Backend::gelu(Tensor x, GeluKind kind, Tensor out) {
  const Checker c(*this, "gelu");
  c.activation(x, "x");
  c.activation(out, "out");
  c.same_shape(x, out);
  c.that(x.dtype() == out.dtype(), "dtypes differ");
  if (x.num_elements() > 0) do_gelu(x, kind, out);
}

void Backend::rotary_table(Tensor positions, Tensor inverse_frequencies, Tensor axes,
                           Tensor cosines, Tensor sines) {
  const Checker c(*this, "rotary_table");
  check_rotary_table(c, positions, inverse_frequencies, axes, cosines, sines);
  if (cosines.size(0) > 0) do_rotary_table(positions, inverse_frequencies, axes, cosines, sines);
}

void Backend::rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) {
  const Checker c(*this, "rotate");
  c.that(is_activation(x) && x.dtype() == out.dtype(), "x and out are f32 or bf16, both the same");
  c.rank(x, 3, "x");
  c.same_shape(x, out);
  check_rotary(c, x, cosines, sines);
  if (x.num_elements() > 0) do_rotate(x, cosines, sines, out);
}

void Backend::store_kv(Tensor k, Tensor v, Tensor slots, const PagedKv& kv) {
  const Checker c(*this, "store_kv");
  c.that(is_activation(k) && k.dtype() == v.dtype(), "k and v are f32 or bf16, both the same");
  c.rank(k, 3, "k");
  c.same_shape(k, v);
  c.vector(slots, DType::i32, k.size(0), "slots");
  check_kv(c, kv);
  c.equal(k.size(1), kv.keys.size(1), "kv heads");
  c.equal(k.size(2), kv.keys.size(3), "head size");
  if (k.size(0) > 0) do_store_kv(k, v, slots, kv);
}

void Backend::attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans, Tensor out) {
  const Checker c(*this, "attend_paged");
  c.that(is_activation(q) && q.dtype() == out.dtype(), "q and out are f32 or bf16, both the same");
  c.rank(q, 3, "q");
  c.same_shape(q, out);
  check_kv(c, kv);
  c.equal(q.size(2), kv.keys.size(3), "head size");
  c.that(q.size(1) % kv.keys.size(1) == 0, "query heads are not a multiple of kv heads");
  c.is(spans.context_length, DType::i32, "context_length");
  const int64_t sequences = spans.context_length.size(0);
  c.vector(spans.query_begin, DType::i32, sequences + 1, "query_begin");
  c.is(spans.page_table, DType::i32, "page_table");
  c.equal(spans.page_table.size(0), sequences, "rows of page_table");
  if (q.size(0) > 0 && sequences > 0) do_attend_paged(q, kv, spans, out);
}

void Backend::attend_packed(Tensor q, Tensor k, Tensor v, std::span<const int64_t> segment_begin,
                            Tensor out) {
  const Checker c(*this, "attend_packed");
  for (const Tensor& x : {q, k, v, out}) {
    c.that(is_activation(x) && x.dtype() == q.dtype(), "q, k, v and out differ in dtype");
    c.rank(x, 3, "q, k, v or out");
    c.same_shape(x, q);
  }
  c.that(!segment_begin.empty() && segment_begin.front() == 0 &&
             segment_begin.back() == q.size(0) &&
             std::is_sorted(segment_begin.begin(), segment_begin.end()),
         "the segments do not cover the rows in order");
  if (q.size(0) > 0) do_attend_packed(q, k, v, segment_begin, out);
}

void Backend::sample(Tensor logits, const SamplingRows& rows, Tensor ids, Tensor log_probs,
                     Tensor reported_ids) {
  const Checker c(*this, "sample");
  c.is(logits, DType::f32, "logits");
  c.rank(logits, 2, "logits");
  const int64_t count = logits.size(0);
  c.vector(ids, DType::i32, count, "ids");
  c.vector(log_probs, DType::f32, count, "log_probs");
  if (!reported_ids.empty()) c.vector(reported_ids, DType::i32, count, "reported_ids");
  for (const Tensor& x : {rows.temperature, rows.top_p, rows.min_p, rows.uniform,
                          rows.repetition_penalty, rows.presence_penalty, rows.frequency_penalty}) {
    c.vector(x, DType::f32, count, "a sampling parameter");
  }
  for (const Tensor& x : {rows.top_k, rows.counts_row, rows.mask_row}) {
    c.vector(x, DType::i32, count, "a sampling parameter");
  }
  if (!rows.token_counts.empty()) {
    c.is(rows.token_counts, DType::u16, "token_counts");
    c.equal(rows.token_counts.size(1), logits.size(1), "columns of token_counts and of logits");
  }
  if (!rows.allowed.empty()) {
    c.is(rows.allowed, DType::u32, "allowed");
    c.equal(rows.allowed.size(1), (logits.size(1) + 31) / 32, "words of a mask");
  }
  if (count > 0) do_sample(logits, rows, ids, log_probs, reported_ids);
}

void Backend::top_log_probs(Tensor logits, Tensor ids, Tensor log_probs) {
  const Checker c(*this, "top_log_probs");
  c.is(logits, DType::f32, "logits");
  c.rank(logits, 2, "logits");
  c.is(ids, DType::i32, "ids");
  c.is(log_probs, DType::f32, "log_probs");
  c.same_shape(ids, log_probs);
  c.equal(ids.size(0), logits.size(0), "rows");
  c.that(ids.size(1) <= logits.size(1), "more tokens wanted than there are");
  if (ids.num_elements() > 0) do_top_log_probs(logits, ids, log_probs);
}

void Backend::count_tokens(Tensor ids, Tensor line, Tensor counts) {
  const Checker c(*this, "count_tokens");
  c.is(ids, DType::i32, "ids");
  c.vector(line, DType::i32, ids.size(0), "line");
  c.is(counts, DType::u16, "counts");
  c.rank(counts, 2, "counts");
  if (ids.size(0) > 0) do_count_tokens(ids, line, counts);
}

void Backend::attention_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                              const DecoderInputs& inputs, int64_t layer,
                              const DecoderActivations& act) {
  if (act.hidden.size(0) > 0) do_attention_block(shape, weights, inputs, layer, act);
}

void Backend::mlp_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                        const DecoderActivations& act) {
  if (act.hidden.size(0) > 0) do_mlp_block(shape, weights, act);
}

void Backend::decoder_layers(const DecoderShape& shape, std::span<const DecoderLayerWeights> layers,
                             const DecoderInputs& inputs, const DecoderActivations& act,
                             const TraceFunction& trace) {
  const Checker c(*this, "decoder_layers");
  c.equal(static_cast<int64_t>(layers.size()), static_cast<int64_t>(inputs.kv.size()),
          "layers and layers of KV cache");
  if (act.hidden.size(0) > 0) do_decoder_layers(shape, layers, inputs, act, trace);
}

}  // namespace glimpse
