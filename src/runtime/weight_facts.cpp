#include "runtime/weight_facts.h"

#include <algorithm>

#include <fmt/format.h>

#include "model/vision_weight_stream.h"
#include "model/weights.h"

namespace glimpse {
namespace {

struct MeasuredContext {
  int capability;
  int64_t bytes;
};
// Measured with nvidia-smi's library before and after the backend is made. Where a capability is
// missing the largest figure stands in: a context grows with the number of multiprocessors, and
// the measured card has more of them than any card of 8 or 16 GiB.
constexpr MeasuredContext kMeasuredContexts[] = {
    {90, int64_t{572} << 20},  // H200, 132 multiprocessors; 527 MiB without our kernels
};

}  // namespace

WeightFacts measure_weights(WeightStore& store, const ModelConfig& config, Backend& backend,
                            bool quantize) {
  WeightFacts facts;
  const bool is_copied = backend.device() != Device::cpu;
  if (!is_copied) facts.mapped_bytes = store.num_bytes();
  const BindOptions options{.quantize_to_fp8 = quantize};
  Arena text = Arena::measuring(backend.device());
  const LanguageWeights language =
      bind_language_weights(store, config.text, backend, text, options);
  facts.text_bytes = text.peak_bytes();
  if (is_copied) facts.embedding_bytes = language.embed_tokens.num_bytes();
  if (config.vision) {
    Arena vision = Arena::measuring(backend.device());
    static_cast<void>(bind_vision_weights(store, *config.vision, backend, vision, options));
    facts.vision_bytes = vision.peak_bytes();
    Arena streamed = Arena::measuring(backend.device());
    static_cast<void>(
        bind_vision_weights(store, *config.vision, backend, streamed, {.streams_vision = true}));
    facts.streamed_vision_bytes = streamed.peak_bytes();
    facts.vision_slot_bytes = VisionWeightStream::slot_bytes(store, *config.vision, backend);
  }
  return facts;
}

void require_fp8_weights(const WeightStore& store, const EngineOptions& options) {
  if (options.arithmetic != Arithmetic::w8a8 || options.quantize_to_fp8) return;
  const std::string format = store.weight_format();
  if (format == "fp8") return;
  throw Error(
      ErrorCode::invalid_argument,
      fmt::format("the arithmetic w8a8 multiplies FP8 weights, and this checkpoint's are {}",
                  format),
      "add --quantize-fp8, which stores them as FP8 while loading, or choose --arithmetic "
      "fast");
}

int64_t assumed_context_bytes(int capability) {
  int64_t largest = 0;
  for (const MeasuredContext& entry : kMeasuredContexts) {
    if (entry.capability == capability) return entry.bytes;
    largest = std::max(largest, entry.bytes);
  }
  return largest;
}

PlanTarget plan_target(const Backend& backend, int cuda_device) {
  PlanTarget target{.device = backend.device()};
  if (target.device == Device::cpu) return target;
  const DeviceMemory memory = backend.memory();
  target.context_bytes = memory.own_bytes;
  if (target.context_bytes == 0) {
    const std::optional<GpuInfo> gpu = find_gpu(cuda_device);
    target.context_bytes =
        assumed_context_bytes(gpu ? 10 * gpu->capability_major + gpu->capability_minor : 0);
  }
  target.free_bytes = memory.free_bytes + target.context_bytes;
  return target;
}

}  // namespace glimpse
