#include "model/weights.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <string_view>

#include "model/quantize.h"

namespace glimpse {
namespace {

// ---- names ----------------------------------------------------------------------------------

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

struct BlockNormName {
  std::string_view name;
  LayerNormWeights VisionBlockWeights::*field;
};
constexpr BlockNormName kBlockNorms[] = {{"norm1", &VisionBlockWeights::norm1},
                                         {"norm2", &VisionBlockWeights::norm2}};

// ---- binding --------------------------------------------------------------------------------

// What both towers need to bind tensors: where they come from, where they go, what to tell.
class Binder {
 public:
  Binder(WeightStore& store, Backend& backend, Arena& arena, const BindOptions& options)
      : store_(store), backend_(backend), arena_(arena), options_(options) {
    if (!arena.is_measuring()) store.prefetch();
  }

  Tensor vector(const std::string& name, int64_t size) {
    return prepared(store_.get(name, {size}, {DType::f32, DType::f16, DType::bf16}), DType::f32);
  }

  LayerNormWeights layer_norm(const std::string& module, int64_t size) {
    return {vector(module + ".weight", size), vector(module + ".bias", size)};
  }

  Tensor prepared(const Tensor& host, DType dtype) {
    const Tensor tensor = backend_.prepare(host, dtype, arena_);
    finish(host);
    return tensor;
  }

  LinearWeight linear(std::span<LinearPart> parts, LinearLayout layout) {
    for (const LinearPart& part : parts) refuse_nan(part);
    const LinearWeight weight = backend_.prepare(parts, layout, arena_);
    for (const LinearPart& part : parts) finish(part.weight);
    return weight;
  }

  LinearWeight linear(const std::string& module, int64_t out_features, int64_t in_features) {
    LinearPart part = store_.linear_part(module, out_features, in_features);
    return linear({&part, 1}, LinearLayout::plain);
  }

  // The decoder's projections: as stored, or in block FP8 when that was asked for.
  LinearWeight projection(std::span<LinearPart> parts, std::span<const std::string> names,
                          LinearLayout layout) {
    if (!options_.quantize_to_fp8 || parts.front().weight.dtype() == DType::f8_e4m3) {
      return linear(parts, layout);
    }
    // A backend on host memory works on the codes where they are: they belong into the arena. Any
    // other copies them, so that they live here for as long as that takes.
    const bool in_arena = arena_.device() == Device::cpu;
    std::vector<std::vector<std::byte>> copies;
    std::vector<LinearPart> quantized;
    for (size_t i = 0; i < parts.size(); ++i) {
      quantized.push_back(quantize(parts[i], names[i], in_arena, copies));
    }
    const LinearWeight weight = backend_.prepare(quantized, layout, arena_);
    if (!in_arena && !arena_.is_measuring()) backend_.synchronize();
    for (const LinearPart& part : parts) finish(part.weight);
    return weight;
  }

 private:
  LinearPart quantize(const LinearPart& part, const std::string& name, bool in_arena,
                      std::vector<std::vector<std::byte>>& copies) {
    const int64_t out = part.weight.size(0);
    const int64_t in = part.weight.size(1);
    const auto take = [&](DType dtype, std::initializer_list<int64_t> shape) {
      if (in_arena) return arena_.allocate(dtype, shape);
      const Tensor layout(nullptr, dtype, Device::cpu, shape);
      if (arena_.is_measuring()) return layout;
      copies.emplace_back(static_cast<size_t>(layout.num_bytes()));
      return Tensor(copies.back().data(), dtype, Device::cpu, shape);
    };
    LinearPart result;
    result.weight = take(DType::f8_e4m3, {out, in});
    result.scales = take(
        DType::f32, {(out + kScaleBlock - 1) / kScaleBlock, (in + kScaleBlock - 1) / kScaleBlock});
    result.bias = part.bias;
    if (arena_.is_measuring()) return result;
    const std::span<std::byte> codes{result.weight.raw(),
                                     static_cast<size_t>(result.weight.num_bytes())};
    quantize_blocks(part.weight, name, pool_, codes, result.scales.span<float>());
    return result;
  }

  void refuse_nan(const LinearPart& part) {
    if (part.weight.dtype() != DType::f8_e4m3 || arena_.is_measuring()) return;
    constexpr int64_t kGrain = 1 << 20;
    const auto* codes = reinterpret_cast<const uint8_t*>(part.weight.raw());
    std::atomic<bool> has_nan = false;
    pool_.parallel_for(part.weight.num_bytes(), kGrain, [&](int64_t first, int64_t last) {
      uint8_t found = 0;
      for (int64_t i = first; i < last; ++i) found |= (codes[i] & 0x7FU) == 0x7FU ? 1 : 0;
      if (found != 0) has_nan = true;
    });
    if (has_nan) {
      throw Error(ErrorCode::bad_model,
                  fmt::format("tensor '{}' holds NaN", store_.name_of_view(part.weight)),
                  "the checkpoint is damaged: download it again");
    }
  }

  void finish(const Tensor& host) {
    if (arena_.is_measuring()) return;
    if (backend_.device() != Device::cpu) store_.release_pages(host);
    done_bytes_ += host.num_bytes();
    if (options_.on_progress) options_.on_progress(done_bytes_);
  }

  WeightStore& store_;
  Backend& backend_;
  Arena& arena_;
  const BindOptions& options_;
  ThreadPool pool_;
  int64_t done_bytes_ = 0;
};

DecoderLayerWeights bind_layer(WeightStore& store, const TextConfig& config,
                               const std::string& prefix, Binder& binder) {
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

VisionMergerWeights bind_merger(const VisionConfig& config, const std::string& prefix,
                                int64_t norm_size, Binder& binder) {
  const int64_t merged = config.merge_area() * config.hidden_size;
  VisionMergerWeights merger;
  merger.norm = binder.layer_norm(prefix + "norm", norm_size);
  merger.linear_fc1 = binder.linear(prefix + "linear_fc1", merged, merged);
  merger.linear_fc2 = binder.linear(prefix + "linear_fc2", config.out_hidden_size, merged);
  return merger;
}

VisionBlockWeights bind_block(const VisionConfig& config, const std::string& prefix,
                              Binder& binder) {
  const int64_t hidden = config.hidden_size;
  VisionBlockWeights block;
  for (const BlockNormName& entry : kBlockNorms) {
    block.*entry.field = binder.layer_norm(fmt::format("{}{}", prefix, entry.name), hidden);
  }
  block.qkv = binder.linear(prefix + "attn.qkv", 3 * hidden, hidden);
  block.proj = binder.linear(prefix + "attn.proj", hidden, hidden);
  block.linear_fc1 = binder.linear(prefix + "mlp.linear_fc1", config.intermediate_size, hidden);
  block.linear_fc2 = binder.linear(prefix + "mlp.linear_fc2", hidden, config.intermediate_size);
  return block;
}

}  // namespace

LanguageWeights bind_language_weights(WeightStore& store, const TextConfig& config,
                                      Backend& backend, Arena& arena, const BindOptions& options) {
  Binder binder(store, backend, arena, options);
  const std::string& prefix = store.text_prefix();
  LanguageWeights weights;
  const Tensor embedding =
      store.get(prefix + "embed_tokens.weight", {config.vocab_size, config.hidden_size},
                {DType::f32, DType::f16, DType::bf16});
  weights.embed_tokens = binder.prepared(embedding, embedding.dtype());
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

VisionWeights bind_vision_weights(WeightStore& store, const VisionConfig& config, Backend& backend,
                                  Arena& arena, const BindOptions& options) {
  Binder binder(store, backend, arena, options);
  const std::string& prefix = store.vision_prefix();
  const int64_t hidden = config.hidden_size;
  VisionWeights weights;
  LinearPart patch_embed =
      store.linear_part(prefix + "patch_embed.proj", hidden, config.patch_features(),
                        {hidden, config.in_channels, config.temporal_patch_size, config.patch_size,
                         config.patch_size});
  weights.patch_embed = binder.linear({&patch_embed, 1}, LinearLayout::plain);
  const Tensor table =
      store.get(prefix + "pos_embed.weight", {config.num_position_embeddings, hidden},
                {DType::f32, DType::f16, DType::bf16});
  weights.pos_embed =
      binder.prepared(table, table.dtype() == DType::bf16 ? DType::bf16 : DType::f32);
  for (int64_t i = 0; i < config.depth; ++i) {
    weights.blocks.push_back(bind_block(config, fmt::format("{}blocks.{}.", prefix, i), binder));
  }
  weights.merger = bind_merger(config, prefix + "merger.", hidden, binder);
  for (int64_t i = 0; i < config.num_deepstack(); ++i) {
    weights.deepstack_mergers.push_back(
        bind_merger(config, fmt::format("{}deepstack_merger_list.{}.", prefix, i),
                    config.merge_area() * hidden, binder));
  }
  return weights;
}

}  // namespace glimpse
