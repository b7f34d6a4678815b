#include "runtime/memory_planner.h"

#include <algorithm>

#include <fmt/format.h>

#include "model/vision_weight_stream.h"
#include "runtime/sequence.h"

namespace glimpse {
namespace {

constexpr int64_t kDefaultContext = 4096;
constexpr int kMaxSequences = 1024;
// Prompt tokens of one step: enough to use every core or multiprocessor well.
constexpr int64_t kPrefillRowsCpu = 512;
constexpr int64_t kPrefillRowsCuda = 1024;
constexpr int64_t kDefaultPictureCacheBytes = int64_t{32} << 20;
// Of the context, at most this share is left to one picture unless the user says otherwise.
constexpr double kPictureShare = 7.0 / 8;

int64_t resolve_context(const ModelConfig& config, const EngineOptions& options) {
  const int64_t most = config.text.max_position_embeddings;
  if (options.context == 0) return std::min(kDefaultContext, most);
  if (options.context < kKvPageTokens || options.context > most) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("context {} is outside {} to {}, what this model was made for",
                            options.context, kKvPageTokens, most),
                "choose another --context");
  }
  return options.context;
}

int64_t resolve_kv_pages(const EngineShape& shape, const EngineOptions& options) {
  if (options.kv_tokens == 0) return shape.max_sequences * pages_of(shape.context);
  if (options.kv_tokens < shape.context) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("a KV cache of {} tokens cannot hold one context of {}",
                            options.kv_tokens, shape.context),
                "raise the KV tokens or lower --context");
  }
  return pages_of(options.kv_tokens);
}

DType resolve_kv_dtype(const EngineShape& shape, const EngineOptions& options) {
  switch (options.kv_format) {
    case KvFormat::automatic:
      return shape.arithmetic == Arithmetic::exact ? DType::f32 : DType::bf16;
    case KvFormat::f32:
      return DType::f32;
    case KvFormat::bf16:
      return DType::bf16;
    case KvFormat::fp8:
      return DType::f8_e4m3;
  }
  return DType::f32;
}

// Area of a picture that becomes one visual token.
int64_t token_pixels_of(const VisionConfig& vision) {
  const int64_t side = vision.patch_size * vision.spatial_merge_size;
  return side * side;
}

int64_t fitting_pixels(int64_t context, int64_t token_pixels) {
  return static_cast<int64_t>(static_cast<double>(context) * kPictureShare) * token_pixels;
}

// How large pictures may become, and what follows from it.
void resolve_pictures(const ModelConfig& config, const ImageProcessorConfig& pictures,
                      const EngineOptions& options, MemoryPlan& plan) {
  if (!config.vision) return;
  EngineShape& shape = plan.shape;
  const VisionConfig& vision = *config.vision;
  const int64_t token_pixels = token_pixels_of(vision);
  shape.min_pixels = options.min_pixels > 0 ? options.min_pixels : pictures.min_pixels;
  shape.max_pixels = options.max_pixels > 0 ? options.max_pixels : pictures.max_pixels;
  if (options.max_pixels == 0) {
    const int64_t fitting = fitting_pixels(shape.context, token_pixels);
    if (shape.max_pixels > fitting) {
      shape.max_pixels = std::max(fitting, token_pixels);
      plan.notices.push_back(
          fmt::format("pictures are scaled to at most {} pixels so that one fits the context of {} "
                      "tokens (--max-pixels and --context change this)",
                      shape.max_pixels, shape.context));
    }
    if (options.min_pixels == 0) shape.min_pixels = std::min(shape.min_pixels, shape.max_pixels);
  }
  if (shape.max_pixels < token_pixels || shape.min_pixels > shape.max_pixels) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("no picture can have between {} and {} pixels: one visual token takes "
                            "{}, and the least must not exceed the most",
                            shape.min_pixels, shape.max_pixels, token_pixels),
                "choose other --min-pixels and --max-pixels");
  }
  const int64_t tokens = shape.max_pixels / token_pixels;
  if (tokens >= shape.context) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("a picture of {} pixels has {} tokens, the context has {}",
                            shape.max_pixels, tokens, shape.context),
                "lower --max-pixels or raise --context");
  }
  shape.max_picture_patches = tokens * vision.merge_area();
  const int64_t token_bytes = (1 + vision.num_deepstack()) * vision.out_hidden_size *
                              bytes_of(activation_dtype(shape.arithmetic));
  const int64_t cache_bytes =
      options.picture_cache_bytes > 0 ? options.picture_cache_bytes : kDefaultPictureCacheBytes;
  shape.visual_store_tokens = tokens + cache_bytes / token_bytes;
}

EngineShape resolve_shape(const ModelConfig& config, const EngineOptions& options, Device device) {
  EngineShape shape;
  shape.device = device;
  shape.arithmetic = options.arithmetic;
  if (shape.arithmetic == Arithmetic::automatic) {
    shape.arithmetic = device == Device::cpu ? Arithmetic::exact : Arithmetic::fast;
  }
  shape.context = resolve_context(config, options);
  shape.max_sequences = options.max_sequences == 0 ? 1 : options.max_sequences;
  if (shape.max_sequences < 1 || shape.max_sequences > kMaxSequences) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} sequences at once are not possible: 1 to {} are",
                            options.max_sequences, kMaxSequences));
  }
  shape.kv_pages = resolve_kv_pages(shape, options);
  shape.kv_dtype = resolve_kv_dtype(shape, options);
  shape.prefill_rows =
      std::min(shape.context, device == Device::cpu ? kPrefillRowsCpu : kPrefillRowsCuda);
  return shape;
}

template <typename Carve>
int64_t measured(Device device, const Carve& carve) {
  Arena arena = Arena::measuring(device);
  carve(arena);
  return arena.peak_bytes();
}

void add_items(const ModelConfig& config, const WeightFacts& weights, MemoryPlan& plan) {
  const EngineShape& shape = plan.shape;
  const auto add = [&](std::string_view name, int64_t bytes) {
    if (bytes > 0) plan.items.push_back({std::string(name), bytes});
  };
  add(kTextWeightsItem, weights.text_bytes);
  add(kVisionWeightsItem,
      shape.streams_vision ? weights.streamed_vision_bytes : weights.vision_bytes);
  add(kKvItem, measured(shape.device, [&](Arena& arena) {
        static_cast<void>(KvPool::carve(config.text, shape.kv_dtype, shape.kv_pages, arena));
      }));
  add(kActivationsItem, measured(shape.device, [&](Arena& arena) {
        const auto carve_vision = [&](Arena& rest) {
          if (shape.max_picture_patches == 0) return;
          static_cast<void>(VisionActivations::carve(*config.vision, shape.arithmetic,
                                                     shape.max_picture_patches, rest));
          if (shape.streams_vision) VisionWeightStream::carve(weights.vision_slot_bytes, rest);
        };
        static_cast<void>(StepActivations::carve(config.text, shape, carve_vision, arena));
      }));
  add(kVisualStoreItem, measured(shape.device, [&](Arena& arena) {
        if (shape.visual_store_tokens == 0) return;
        static_cast<void>(carve_visual_tokens(*config.vision, shape.arithmetic,
                                              shape.visual_store_tokens, arena));
      }));
  add(kTablesItem, measured(shape.device, [&](Arena& arena) {
        static_cast<void>(
            StepBuffers::carve(config.text, shape.arithmetic, shape.step_limits(), arena));
        static_cast<void>(
            SamplerBuffers::carve(config.text.vocab_size, shape.max_sequences, arena));
      }));
}

struct PlanInputs {
  const ModelConfig& config;
  const ImageProcessorConfig& pictures;
  const WeightFacts& weights;
  Device device;
};

MemoryPlan plan_as_asked(const PlanInputs& inputs, const EngineOptions& options) {
  MemoryPlan plan;
  plan.shape = resolve_shape(inputs.config, options, inputs.device);
  resolve_pictures(inputs.config, inputs.pictures, options, plan);
  if (options.vision == VisionResidency::on_demand && inputs.config.vision) {
    plan.shape.streams_vision = inputs.device != Device::cpu;
    if (!plan.shape.streams_vision) {
      plan.notices.emplace_back(
          "vision weights on demand have no effect on the CPU: it uses them where the file is "
          "mapped");
    }
  }
  add_items(inputs.config, inputs.weights, plan);
  return plan;
}

// How far automatic choices go.
constexpr int64_t kLeastMaxPixels = 1 << 20;
constexpr int64_t kLeastContext = 1024;

// What was lowered between two plans, one sentence each.
std::vector<std::string> announcements(const EngineShape& asked, const EngineShape& lowered) {
  std::vector<std::string> sentences;
  const auto announce = [&](bool is_lowered, const std::string& what) {
    if (is_lowered) sentences.push_back("to fit the memory, " + what);
  };
  announce(lowered.max_pixels < asked.max_pixels,
           fmt::format("pictures are scaled to at most {} pixels", lowered.max_pixels));
  announce(lowered.kv_dtype != asked.kv_dtype, "the KV cache is in FP8");
  announce(lowered.streams_vision != asked.streams_vision, "vision weights are on demand");
  announce(lowered.context < asked.context,
           fmt::format("the context is {} tokens", lowered.context));
  return sentences;
}

// Lowers what the user left open, in the order in which it costs the user least.
MemoryPlan lower_to_fit(const PlanInputs& inputs, const EngineOptions& asked, int64_t limit) {
  EngineOptions options = asked;
  const MemoryPlan first = plan_as_asked(inputs, options);
  MemoryPlan plan = first;
  const auto is_too_large = [&] { return plan.total_bytes() > limit; };
  if (asked.max_pixels == 0) {
    while (is_too_large() && plan.shape.max_pixels > kLeastMaxPixels) {
      options.max_pixels = std::max<int64_t>(plan.shape.max_pixels / 2, kLeastMaxPixels);
      plan = plan_as_asked(inputs, options);
    }
  }
  if (is_too_large() && asked.kv_format == KvFormat::automatic) {
    options.kv_format = KvFormat::fp8;
    plan = plan_as_asked(inputs, options);
  }
  if (is_too_large() && asked.vision == VisionResidency::automatic && inputs.config.vision) {
    options.vision = VisionResidency::on_demand;
    plan = plan_as_asked(inputs, options);
  }
  while (is_too_large() && asked.context == 0 && plan.shape.context > kLeastContext) {
    options.context = std::max<int64_t>(plan.shape.context / 2, kLeastContext);
    if (asked.max_pixels == 0 && inputs.config.vision) {  // the picture follows the context down
      options.max_pixels =
          std::min(plan.shape.max_pixels,
                   fitting_pixels(options.context, token_pixels_of(*inputs.config.vision)));
    }
    plan = plan_as_asked(inputs, options);
  }
  for (std::string& sentence : announcements(first.shape, plan.shape)) {
    plan.notices.push_back(std::move(sentence));
  }
  return plan;
}

[[noreturn]] void refuse(const MemoryPlan& plan, int64_t limit) {
  const auto largest =
      std::max_element(plan.items.begin(), plan.items.end(),
                       [](const MemoryItem& a, const MemoryItem& b) { return a.bytes < b.bytes; });
  throw Error(ErrorCode::out_of_memory,
              fmt::format("the engine needs {} MiB and {} MiB may be used; the largest part is the "
                          "{} with {} MiB",
                          (plan.total_bytes() >> 20) + 1, limit >> 20, largest->name,
                          (largest->bytes >> 20) + 1),
              "lower --context, --max-pixels or the number of sequences");
}

}  // namespace

StepLimits EngineShape::step_limits() const {
  return {.max_rows = max_rows(),
          .max_sequences = max_sequences,
          .max_pages = pages_of(context),
          .max_outputs = max_sequences};
}

int64_t MemoryPlan::total_bytes() const {
  int64_t bytes = 0;
  for (const MemoryItem& item : items) bytes += item.bytes;
  return bytes;
}

int64_t MemoryPlan::bytes_of_item(std::string_view name) const {
  for (const MemoryItem& item : items) {
    if (item.name == name) return item.bytes;
  }
  return 0;
}

KvPool KvPool::carve(const TextConfig& config, DType dtype, int64_t num_pages, Arena& arena) {
  KvPool pool;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    PagedKv layer;
    layer.keys =
        arena.allocate(dtype, {num_pages, config.num_kv_heads, kKvPageTokens, config.head_dim});
    layer.values =
        arena.allocate(dtype, {num_pages, config.num_kv_heads, kKvPageTokens, config.head_dim});
    if (dtype == DType::f8_e4m3) {
      layer.key_scales =
          arena.allocate(DType::f32, {num_pages, config.num_kv_heads, kKvPageTokens});
      layer.value_scales =
          arena.allocate(DType::f32, {num_pages, config.num_kv_heads, kKvPageTokens});
    }
    pool.layers.push_back(layer);
  }
  return pool;
}

MemoryPlan plan_memory(const ModelConfig& config, const ImageProcessorConfig& pictures,
                       const WeightFacts& weights, const EngineOptions& options, Device device,
                       int64_t free_bytes) {
  const PlanInputs inputs{config, pictures, weights, device};
  const int64_t cap = options.memory_cap_bytes;
  const int64_t limit = cap > 0 && (free_bytes == 0 || cap < free_bytes) ? cap : free_bytes;
  MemoryPlan plan = plan_as_asked(inputs, options);
  if (limit == 0 || plan.total_bytes() <= limit) return plan;
  if (device != Device::cpu) plan = lower_to_fit(inputs, options, limit);
  if (plan.total_bytes() > limit) refuse(plan, limit);
  return plan;
}

}  // namespace glimpse
