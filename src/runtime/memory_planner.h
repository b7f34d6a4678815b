// Every byte an engine takes, computed before it takes any: the same code that lays out the real
// memory runs over measuring arenas, so the plan cannot differ from the truth.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "glimpse/engine.h"
#include "glimpse/options.h"
#include "image/image_processor.h"
#include "model/config.h"
#include "model/language_model.h"
#include "model/vision_encoder.h"
#include "runtime/sampler.h"

namespace glimpse {

/// An engine's sizes, with nothing left open.
struct EngineShape {
  Device device = Device::cpu;
  Arithmetic arithmetic = Arithmetic::exact;
  DType kv_dtype = DType::f32;
  int64_t context = 0;
  int max_sequences = 1;
  int64_t kv_pages = 0;
  int64_t prefill_rows = 0;  // prompt tokens of one step
  int64_t min_pixels = 0;
  int64_t max_pixels = 0;
  int64_t max_picture_patches = 0;  // of one vision pass; 0: no vision tower
  int64_t visual_store_tokens = 0;
  bool streams_vision = false;  // vision weights come block by block when a picture does

  [[nodiscard]] int64_t max_rows() const { return prefill_rows + max_sequences; }
  [[nodiscard]] StepLimits step_limits() const;
};

/// What the weights take, by measuring how they are bound (model/weights.h).
struct WeightFacts {
  int64_t mapped_bytes = 0;     // of the checkpoint's files, used where they are
  int64_t text_bytes = 0;       // of device memory, beyond the mapped files
  int64_t embedding_bytes = 0;  // of these, the table of token embeddings
  int64_t vision_bytes = 0;
  int64_t streamed_vision_bytes = 0;  // what stays on the device with vision on demand,
  int64_t vision_slot_bytes = 0;      // and one of its two slots
};

/// The device that a plan is for, as it is before this process takes any of its memory.
struct PlanTarget {
  Device device = Device::cpu;
  int64_t free_bytes = 0;     // 0: host memory, which is not limited
  int64_t context_bytes = 0;  // CUDA's context, all kernels, the backend's workspaces
};

struct MemoryPlan {
  EngineShape shape;
  std::vector<MemoryItem> items;       // of the device
  std::vector<MemoryItem> host_items;  // of the host on behalf of the device
  /// Automatic choices, one sentence each.
  std::vector<std::string> notices;

  [[nodiscard]] int64_t total_bytes() const;
  /// Bytes of one item, 0 when there is none.
  [[nodiscard]] int64_t bytes_of_item(std::string_view name) const;
};

/// The names of the items, as they stand in plans and errors.
inline constexpr std::string_view kContextItem = "cuda context and kernels";
inline constexpr std::string_view kEmbeddingItem = "embedding";
inline constexpr std::string_view kTextWeightsItem = "text weights";
inline constexpr std::string_view kVisionWeightsItem = "vision weights";
inline constexpr std::string_view kKvItem = "kv cache";
inline constexpr std::string_view kActivationsItem = "activations";
inline constexpr std::string_view kVisualStoreItem = "visual store";
inline constexpr std::string_view kTablesItem = "step tables";
inline constexpr std::string_view kRecordedStepsItem = "recorded steps";
inline constexpr std::string_view kStagingItem = "pinned staging";
inline constexpr std::string_view kHostVisionItem = "vision weights, on demand";

/// What a plan follows from.
struct PlanInputs {
  const ModelConfig& config;
  const ImageProcessorConfig& pictures;
  const WeightFacts& weights;
  PlanTarget target;
};

/// Resolves what the options leave open and adds up the memory, whether it fits or not. Pure.
/// Throws Error(invalid_argument) for options that contradict each other or the model.
[[nodiscard]] MemoryPlan plan_as_asked(const PlanInputs& inputs, const EngineOptions& options);

/// The same, made to fit: on a GPU what the options leave open is lowered as memory_fit.h says, and
/// announced in the notices. Throws Error(out_of_memory) when it does not fit.
[[nodiscard]] MemoryPlan plan_memory(const PlanInputs& inputs, const EngineOptions& options);

/// Area of a picture that becomes one visual token.
[[nodiscard]] int64_t token_pixels_of(const VisionConfig& vision);
/// The largest picture that a context is given to unless the user asks for more.
[[nodiscard]] int64_t fitting_pixels(int64_t context, int64_t token_pixels);

// ---- the layouts that plan and engine share ---------------------------------------------------

/// Keys and values of all layers.
struct KvPool {
  std::vector<PagedKv> layers;

  [[nodiscard]] static KvPool carve(const TextConfig& config, DType dtype, int64_t num_pages,
                                    Arena& arena);
};

/// Activations of decode steps, and those of prefill in the memory that the vision tower uses when
/// no prompt is computed. `carve_vision` takes the tower's activations from the arena.
struct StepActivations {
  LanguageActivations decode;
  LanguageActivations prefill;

  template <typename CarveVision>
  [[nodiscard]] static StepActivations carve(const TextConfig& config, const EngineShape& shape,
                                             const CarveVision& carve_vision, Arena& arena) {
    StepActivations act;
    act.decode = LanguageActivations::carve(config, shape.arithmetic, shape.max_sequences, arena);
    const int64_t mark = arena.used_bytes();
    act.prefill = LanguageActivations::carve(config, shape.arithmetic, shape.max_rows(), arena);
    arena.rewind(mark);
    carve_vision(arena);
    return act;
  }
};

}  // namespace glimpse
