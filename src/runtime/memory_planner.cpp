#include "runtime/memory_planner.h"

#include <algorithm>

#include <fmt/format.h>

#include "model/vision_weight_stream.h"
#include "runtime/memory_fit.h"
#include "runtime/sequence.h"

namespace glimpse {
namespace {

constexpr int64_t kDefaultContext = 4096;
// Prompt tokens of one step: enough to use every core or multiprocessor well.
constexpr int64_t kPrefillRowsCpu = 512;
constexpr int64_t kPrefillRowsCuda = 2048;
// For pictures seen before, beside the room for one of the largest size.
constexpr int64_t kDefaultPictureCacheBytes = int64_t{32} << 20;
constexpr int64_t kPictureCacheBytesOfSequence = int64_t{4} << 20;  // on a GPU
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

int64_t default_picture_cache(const EngineShape& shape) {
  if (shape.device == Device::cpu) return kDefaultPictureCacheBytes;
  return std::min(shape.max_sequences * kPictureCacheBytesOfSequence, kDefaultPictureCacheBytes);
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
      options.picture_cache_bytes > 0 ? options.picture_cache_bytes : default_picture_cache(shape);
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

// cudaMalloc hands out whole pieces of this size.
constexpr int64_t kDevicePieceBytes = int64_t{2} << 20;
// What the driver takes for the recorded decode steps of one size, at most; in such pieces too.
constexpr int64_t kRecordedStepBytes = int64_t{1} << 20;
// cuda/staging_ring.h, pinned in host memory.
constexpr int64_t kStagingBytes = int64_t{16} << 20;

int64_t allocated(Device device, int64_t bytes) {
  if (device == Device::cpu) return bytes;
  return (bytes + kDevicePieceBytes - 1) / kDevicePieceBytes * kDevicePieceBytes;
}

// Decode steps of 1, 2, 4, ... rows up to max_sequences are recorded at start.
int64_t recorded_steps_bytes(const EngineShape& shape) {
  int64_t sizes = 1;
  for (int rows = 1; rows < shape.max_sequences; rows *= 2) ++sizes;
  return sizes * kRecordedStepBytes;
}

StepActivations carve_activations(const PlanInputs& inputs, const EngineShape& shape,
                                  Arena& arena) {
  const auto carve_vision = [&](Arena& rest) {
    if (shape.max_picture_patches == 0) return;
    static_cast<void>(VisionActivations::carve(*inputs.config.vision, shape.arithmetic,
                                               shape.max_picture_patches, rest));
    if (shape.streams_vision) VisionWeightStream::carve(inputs.weights.vision_slot_bytes, rest);
  };
  return StepActivations::carve(inputs.config.text, shape, carve_vision, arena);
}

void add_device_items(const PlanInputs& inputs, MemoryPlan& plan) {
  const EngineShape& shape = plan.shape;
  const ModelConfig& config = inputs.config;
  const WeightFacts& weights = inputs.weights;
  const auto add = [&](std::string_view name, int64_t bytes) {
    if (bytes > 0) plan.items.push_back({std::string(name), bytes});
  };
  const auto add_allocated = [&](std::string_view name, int64_t bytes) {
    add(name, allocated(shape.device, bytes));
  };
  add(kContextItem, inputs.target.context_bytes);
  add(kEmbeddingItem, weights.embedding_bytes);
  add(kTextWeightsItem,  // one allocation with the embedding
      allocated(shape.device, weights.text_bytes) - weights.embedding_bytes);
  add_allocated(kVisionWeightsItem,
                shape.streams_vision ? weights.streamed_vision_bytes : weights.vision_bytes);
  add_allocated(
      kKvItem, measured(shape.device, [&](Arena& arena) {
        static_cast<void>(KvPool::carve(config.text, shape.kv_dtype, shape.kv_pages, arena));
      }));
  add_allocated(kActivationsItem, measured(shape.device, [&](Arena& arena) {
                  static_cast<void>(carve_activations(inputs, shape, arena));
                }));
  add_allocated(kVisualStoreItem, measured(shape.device, [&](Arena& arena) {
                  if (shape.visual_store_tokens == 0) return;
                  static_cast<void>(carve_visual_tokens(*config.vision, shape.arithmetic,
                                                        shape.visual_store_tokens, arena));
                }));
  add_allocated(kTablesItem, measured(shape.device, [&](Arena& arena) {
                  static_cast<void>(StepBuffers::carve(config.text, shape.arithmetic,
                                                       shape.step_limits(), arena));
                  static_cast<void>(
                      SamplerBuffers::carve(config.text.vocab_size, shape.max_sequences, arena));
                }));
  if (shape.device != Device::cpu) add_allocated(kRecordedStepsItem, recorded_steps_bytes(shape));
}

void add_host_items(const WeightFacts& weights, MemoryPlan& plan) {
  if (plan.shape.device == Device::cpu) return;
  plan.host_items.push_back({std::string(kStagingItem), kStagingBytes});
  if (plan.shape.streams_vision) {
    plan.host_items.push_back(
        {std::string(kHostVisionItem), weights.vision_bytes - weights.streamed_vision_bytes});
  }
}

}  // namespace

// Area of a picture that becomes one visual token.
int64_t token_pixels_of(const VisionConfig& vision) {
  const int64_t side = vision.patch_size * vision.spatial_merge_size;
  return side * side;
}

int64_t fitting_pixels(int64_t context, int64_t token_pixels) {
  return static_cast<int64_t>(static_cast<double>(context) * kPictureShare) * token_pixels;
}

MemoryPlan plan_as_asked(const PlanInputs& inputs, const EngineOptions& options) {
  MemoryPlan plan;
  plan.shape = resolve_shape(inputs.config, options, inputs.target.device);
  resolve_pictures(inputs.config, inputs.pictures, options, plan);
  if (options.vision == VisionResidency::on_demand && inputs.config.vision) {
    plan.shape.streams_vision = inputs.target.device != Device::cpu;
    if (!plan.shape.streams_vision) {
      plan.notices.emplace_back(
          "vision weights on demand have no effect on the CPU: it uses them where the file is "
          "mapped");
    }
  }
  add_device_items(inputs, plan);
  add_host_items(inputs.weights, plan);
  return plan;
}

StepLimits EngineShape::step_limits() const {
  return {.max_rows = max_rows(),
          .max_sequences = max_sequences,
          .max_pages = pages_of(context),
          .max_outputs = max_sequences,
          .max_sampling_words = Sampler::num_words(max_sequences)};
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

MemoryPlan plan_memory(const PlanInputs& inputs, const EngineOptions& options) {
  const int64_t limit = memory_limit(inputs.target, options);
  MemoryPlan plan = plan_as_asked(inputs, options);
  if (limit == 0 || plan.total_bytes() <= limit) return plan;
  if (inputs.target.device != Device::cpu) plan = lower_to_fit(inputs, options, limit);
  if (plan.total_bytes() > limit) refuse(inputs, options, plan, limit);
  return plan;
}

}  // namespace glimpse
