#include "cuda/cuda_decode.h"

#include "cuda/decode_layers.h"

namespace glimpse::cuda {
namespace {

/// The one stored matrix behind a weight, if it is one, without bias, of the wanted dtype.
const LinearPart* single_part(const LinearWeight& weight, DType dtype) {
  if (weight.parts.size() != 1) return nullptr;
  const LinearPart& part = weight.parts.front();
  return part.weight.dtype() == dtype && part.bias.empty() ? &part : nullptr;
}

bool fill_layer(const DecoderShape& shape, const DecoderLayerWeights& weights, const PagedKv& kv,
                DType dtype, DecodeLayer& layer) {
  const LinearPart* parts[] = {
      single_part(weights.qkv_proj, dtype), single_part(weights.o_proj, dtype),
      single_part(weights.gate_up_proj, dtype), single_part(weights.down_proj, dtype)};
  for (int i = 0; i < kDecodeProducts; ++i) {
    if (parts[i] == nullptr) return false;
    layer.weights[i] = parts[i]->weight.raw();
    layer.scales[i] = pointer_of<float>(parts[i]->scales);
  }
  // Gate and up are the halves of one matrix; so are their scales where blocks do not cross.
  const LinearPart& gate_up = *parts[static_cast<int>(DecodeProduct::gate_up)];
  layer.up = gate_up.weight.slice(0, shape.intermediate_size, shape.intermediate_size).raw();
  if (dtype == DType::f8_e4m3) {
    if (shape.intermediate_size % kScaleBlock != 0) return false;
    const int64_t scale_rows = shape.intermediate_size / kScaleBlock;
    layer.up_scales = gate_up.scales.slice(0, scale_rows, scale_rows).data<float>();
  }
  layer.input_layernorm = weights.input_layernorm.data<float>();
  layer.post_attention_layernorm = weights.post_attention_layernorm.data<float>();
  layer.q_norm = pointer_of<float>(weights.q_norm);
  layer.k_norm = pointer_of<float>(weights.k_norm);
  layer.keys = kv.keys.raw();
  layer.values = kv.values.raw();
  layer.key_scales = pointer_of<float>(kv.key_scales);
  layer.value_scales = pointer_of<float>(kv.value_scales);
  return true;
}

}  // namespace

bool run_decode_layers(const CudaContext& context, const DecoderShape& shape,
                       std::span<const DecoderLayerWeights> layers, const DecoderInputs& inputs,
                       const DecoderActivations& act) {
  const int64_t rows = act.hidden.size(0);
  if (!act.quantized.empty()) return false;  // it multiplies bf16
  if (!context.uses(Family::attention_decode) || !context.uses(Family::gemv)) return false;
  if (inputs.spans.max_queries != 1 || inputs.spans.context_length.size(0) != rows ||
      rows > kDecodeRows || !inputs.deepstack.empty() || shape.head_dim != kDecodeHeadDim ||
      static_cast<int>(layers.size()) > kDecodeMaxLayers || layers.empty() ||
      layers.front().qkv_proj.parts.empty()) {
    return false;
  }
  const DType weight = layers.front().qkv_proj.parts.front().weight.dtype();
  const DType kv = inputs.kv.front().keys.dtype();
  if (act.qkv.dtype() != DType::bf16 || (weight != DType::bf16 && weight != DType::f8_e4m3) ||
      (kv != DType::bf16 && kv != DType::f8_e4m3)) {
    return false;
  }
  if (!act.hidden.is_contiguous()) return false;
  DecodeLayers all;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!fill_layer(shape, layers[i], inputs.kv[i], weight, all.layers[i])) return false;
  }
  const DecodeArguments arguments{.num_layers = static_cast<int>(layers.size()),
                                  .rows = static_cast<int>(rows),
                                  .hidden_size = static_cast<int>(shape.hidden_size),
                                  .intermediate_size = static_cast<int>(shape.intermediate_size),
                                  .num_heads = static_cast<int>(shape.num_heads),
                                  .num_kv_heads = static_cast<int>(shape.num_kv_heads),
                                  .epsilon = shape.rms_norm_eps,
                                  .weight_is_f8 = weight == DType::f8_e4m3,
                                  .kv_is_f8 = kv == DType::f8_e4m3,
                                  .hidden = act.hidden.data<float>(),
                                  .cosines = inputs.cosines.data<float>(),
                                  .sines = inputs.sines.data<float>(),
                                  .slots = inputs.slots.data<int32_t>(),
                                  .context_length = inputs.spans.context_length.data<int32_t>(),
                                  .page_table = inputs.spans.page_table.data<int32_t>(),
                                  .max_pages = static_cast<int>(inputs.spans.page_table.stride(0)),
                                  .workspace = context.decode_workspace()};
  const int num_multiprocessors = context.card().num_multiprocessors;
  if (!decode_supports(arguments, num_multiprocessors)) return false;
  require(launch_decode(arguments, all, num_multiprocessors, context.stream()),
          "the fused decoder");
  return true;
}

}  // namespace glimpse::cuda
