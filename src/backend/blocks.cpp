// Blocks as the sequences of their operations. A backend may fuse any of these; what stands
// here is then its test.
#include "backend/backend.h"

namespace glimpse {

void Backend::do_linear_gelu(Tensor x, const LinearWeight& weight, GeluKind kind, Tensor out) {
  do_linear(x, weight, out, {});
  do_gelu(out, kind, out);
}

void Backend::do_linear_rotate(Tensor x, const LinearWeight& weight, const HeadRotation& rotation,
                               Tensor out) {
  do_linear(x, weight, out, {});
  const Tensor heads = rotation.heads_of(out);
  do_rotate(heads, rotation.cosines, rotation.sines, heads);
}

void Backend::do_attention_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                                 const DecoderInputs& inputs, int64_t layer,
                                 const DecoderActivations& act) {
  const int64_t q_size = shape.num_heads * shape.head_dim;
  const int64_t kv_size = shape.num_kv_heads * shape.head_dim;
  const PagedKv& kv = inputs.kv[static_cast<size_t>(layer)];
  rms_norm(act.hidden, weights.input_layernorm, shape.rms_norm_eps, act.normed);
  linear(act.normed, weights.qkv_proj, act.qkv, act.quantized);
  const Tensor q = act.qkv.slice(1, 0, q_size).split_last(shape.num_heads);
  const Tensor k = act.qkv.slice(1, q_size, kv_size).split_last(shape.num_kv_heads);
  const Tensor v = act.qkv.slice(1, q_size + kv_size, kv_size).split_last(shape.num_kv_heads);
  if (!weights.q_norm.empty()) {
    rms_norm(q, weights.q_norm, shape.rms_norm_eps, q);
    rms_norm(k, weights.k_norm, shape.rms_norm_eps, k);
  }
  const Tensor q_and_k =
      act.qkv.slice(1, 0, q_size + kv_size).split_last(shape.num_heads + shape.num_kv_heads);
  rotate(q_and_k, inputs.cosines, inputs.sines, q_and_k);
  store_kv(k, v, inputs.slots, kv);
  const Tensor attended = act.attended.split_last(shape.num_heads);
  attend_paged(q, kv, inputs.spans, attended);
  linear_add(act.attended, weights.o_proj, act.hidden, act.quantized);
}

void Backend::do_mlp_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                           const DecoderActivations& act) {
  rms_norm(act.hidden, weights.post_attention_layernorm, shape.rms_norm_eps, act.normed);
  linear_silu_mul(act.normed, weights.gate_up_proj, act.gate_up, act.intermediate, act.quantized);
  linear_add(act.intermediate, weights.down_proj, act.hidden, act.quantized);
}

void Backend::do_decoder_layers(const DecoderShape& shape,
                                std::span<const DecoderLayerWeights> layers,
                                const DecoderInputs& inputs, const DecoderActivations& act,
                                const TraceFunction& trace) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    attention_block(shape, layers[i], inputs, layer, act);
    mlp_block(shape, layers[i], act);
    if (trace) trace("text.layer", layer, act.hidden);
    bool injected = false;
    for (const DeepstackRows& piece : inputs.deepstack) {
      if (i >= piece.deepstack.size()) continue;
      add_rows(piece.deepstack[i], piece.rows, act.hidden);
      injected = true;
    }
    if (trace && injected) trace("text.layer.after_deepstack", layer, act.hidden);
  }
}

}  // namespace glimpse
