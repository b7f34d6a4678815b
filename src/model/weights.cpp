#include "model/weights.h"

#include <array>
#include <string>
#include <string_view>

#include "model/weight_binder.h"

namespace glimpse {
namespace {

enum class Width { hidden, head, queries, keys, intermediate };

struct VectorName {
  std::string_view name;
  Tensor DecoderLayerWeights::*field;
  Width size;
};
constexpr VectorName kLayerVectors[] = {
    {"input_layernorm.weight", &DecoderLayerWeights::input_layernorm, Width::hidden},
    {"self_attn.q_norm.weight", &DecoderLayerWeights::q_norm, Width::head},
    {"self_attn.k_norm.weight", &DecoderLayerWeights::k_norm, Width::head},
    {"post_attention_layernorm.weight", &DecoderLayerWeights::post_attention_layernorm,
     Width::hidden},
};

struct ModuleName {
  std::string_view name;  // empty: no further part
  Width out = Width::hidden;
};
struct LinearName {
  LinearWeight DecoderLayerWeights::*field;
  LinearLayout layout;
  Width in;
  std::array<ModuleName, 3> parts;  // rows one below the other
};
constexpr LinearName kLayerLinears[] = {
    {&DecoderLayerWeights::qkv_proj,
     LinearLayout::plain,
     Width::hidden,
     {{{"self_attn.q_proj", Width::queries},
       {"self_attn.k_proj", Width::keys},
       {"self_attn.v_proj", Width::keys}}}},
    {&DecoderLayerWeights::o_proj,
     LinearLayout::plain,
     Width::queries,
     {{{"self_attn.o_proj", Width::hidden}}}},
    {&DecoderLayerWeights::gate_up_proj,
     LinearLayout::gate_up,
     Width::hidden,
     {{{"mlp.gate_proj", Width::intermediate}, {"mlp.up_proj", Width::intermediate}}}},
    {&DecoderLayerWeights::down_proj,
     LinearLayout::plain,
     Width::intermediate,
     {{{"mlp.down_proj", Width::hidden}}}},
};

int64_t size_of(Width width, const TextConfig& config) {
  switch (width) {
    case Width::hidden:
      return config.hidden_size;
    case Width::head:
      return config.head_dim;
    case Width::queries:
      return config.num_heads * config.head_dim;
    case Width::keys:
      return config.num_kv_heads * config.head_dim;
    case Width::intermediate:
      return config.intermediate_size;
  }
  return 0;
}

DecoderLayerWeights bind_layer(WeightStore& store, const TextConfig& config,
                               const std::string& prefix, WeightBinder& binder) {
  DecoderLayerWeights layer;
  for (const VectorName& entry : kLayerVectors) {
    layer.*entry.field =
        binder.vector(fmt::format("{}{}", prefix, entry.name), size_of(entry.size, config));
  }
  for (const LinearName& entry : kLayerLinears) {
    std::vector<LinearPart> parts;
    std::vector<std::string> names;
    for (const ModuleName& module : entry.parts) {
      if (module.name.empty()) continue;
      names.push_back(fmt::format("{}{}", prefix, module.name));
      parts.push_back(
          store.linear_part(names.back(), size_of(module.out, config), size_of(entry.in, config)));
    }
    layer.*entry.field = binder.projection(parts, names, entry.layout);
  }
  return layer;
}

}  // namespace

LanguageWeights bind_language_weights(WeightStore& store, const TextConfig& config,
                                      Backend& backend, Arena& arena, const BindOptions& options) {
  WeightBinder binder(store, backend, arena, options);
  const std::string& prefix = store.text_prefix();
  LanguageWeights weights;
  const Tensor embedding =
      store.get(prefix + "embed_tokens.weight", {config.vocab_size, config.hidden_size},
                {DType::f32, DType::f16, DType::bf16});
  // A GPU's products read BF16; a tied head is this very table.
  const bool is_copied = arena.device() != Device::cpu;
  weights.embed_tokens = binder.table(embedding, is_copied ? DType::bf16 : embedding.dtype());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    weights.layers.push_back(
        bind_layer(store, config, fmt::format("{}layers.{}.", prefix, i), binder));
  }
  weights.norm = binder.vector(prefix + "norm.weight", config.hidden_size);
  // Presence decides, not the config: re-exports are known to claim tied heads that are not.
  if (store.head_name().empty()) {
    weights.lm_head.parts = {LinearPart{weights.embed_tokens, {}, {}}};
  } else {
    const std::string& name = store.head_name();
    const std::string module = name.substr(0, name.size() - std::string_view(".weight").size());
    weights.lm_head = binder.linear(module, config.vocab_size, config.hidden_size);
  }
  return weights;
}

}  // namespace glimpse
