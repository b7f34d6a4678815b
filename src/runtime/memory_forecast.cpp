#include <fmt/format.h>

#include "backend/weight_layout.h"
#include "glimpse/plan.h"
#include "runtime/loaded_model.h"
#include "runtime/memory_fit.h"
#include "runtime/weight_facts.h"

namespace glimpse {
namespace {

constexpr int64_t kDefaultCardBytes = int64_t{8} << 30;
// What a desktop leaves of the card most people have: 7,372 of 8,192 MiB.
constexpr int64_t kDesktopBytes = int64_t{820} << 20;

constexpr int64_t to_mebibytes(int64_t bytes) {
  return bytes >> 20;
}

void assume_card(int64_t bytes, MemoryForecast& forecast, PlanTarget& target) {
  if (bytes <= kDesktopBytes) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("a card of {} MiB is smaller than what a desktop takes, {} MiB",
                            to_mebibytes(bytes), to_mebibytes(kDesktopBytes)),
                "give the size of the card, as 8GiB");
  }
  forecast.card = fmt::format("a card of {:.1f} GiB", static_cast<double>(bytes) / (1LL << 30));
  forecast.card_bytes = bytes;
  forecast.free_bytes = bytes - kDesktopBytes;
  target.context_bytes = assumed_context_bytes(0);
}

// The card of this machine, measured by making and ending its backend.
void examine_card(const GpuInfo& gpu, int device, MemoryForecast& forecast, PlanTarget& target) {
  forecast.card = gpu.name;
  forecast.card_bytes = gpu.total_bytes;
  forecast.free_bytes = gpu.free_bytes < 0 ? gpu.total_bytes - kDesktopBytes : gpu.free_bytes;
  target.context_bytes = assumed_context_bytes(10 * gpu.capability_major + gpu.capability_minor);
  try {
    const auto backend =
        create_backend({.choice = BackendOptions::Choice::cuda, .cuda_device = device});
    const PlanTarget measured = plan_target(*backend, device);
    target.context_bytes = measured.context_bytes;
    forecast.free_bytes = measured.free_bytes;
  } catch (const Error&) {
    // A full card has no room for a context; the table's figure stands.
  }
}

// Everything a forecast computes with.
class Forecaster {
 public:
  Forecaster(const EngineOptions& options, int64_t gpu_bytes)
      : options_(options),
        files_(ModelFiles::open(options)),
        store_(files_.directory),
        layout_(create_layout_backend()),
        weights_(measure_weights(store_, files_.config, *layout_, options.quantize_to_fp8)) {
    target_.device = Device::cuda;
    require_fp8_weights(store_, options);
    const std::optional<GpuInfo> gpu =
        gpu_bytes == 0 ? find_gpu(options.cuda_device) : std::nullopt;
    if (gpu) {
      examine_card(*gpu, options.cuda_device, forecast_, target_);
    } else {
      assume_card(gpu_bytes == 0 ? kDefaultCardBytes : gpu_bytes, forecast_, target_);
    }
    forecast_.desktop_bytes = forecast_.card_bytes - forecast_.free_bytes;
    target_.free_bytes = forecast_.free_bytes;
  }

  MemoryForecast run() {
    limit_ = memory_limit(target_, options_);
    const MemoryPlan asked = plan_as_asked(inputs(), options_);
    const bool fits_as_asked = asked.total_bytes() <= limit_;
    plan_ = fits_as_asked ? asked : lower_to_fit(inputs(), options_, limit_);
    const bool fits = plan_.total_bytes() <= limit_;
    using Verdict = MemoryForecast::Verdict;
    const bool is_tight =
        !fits_as_asked || forecast_.free_bytes - plan_.total_bytes() < MemoryForecast::kTightBytes;
    forecast_.verdict = !fits ? Verdict::does_not_fit : is_tight ? Verdict::tight : Verdict::fits;
    describe();
    if (forecast_.verdict != Verdict::fits) advise();
    return forecast_;
  }

 private:
  [[nodiscard]] PlanInputs inputs() const {
    return {files_.config, files_.pictures, weights_, target_};
  }

  void describe() {
    const EngineShape& shape = plan_.shape;
    forecast_.model = files_.name;
    const std::string stored = store_.weight_format();
    forecast_.weight_format = options_.quantize_to_fp8 ? "fp8" : stored;
    forecast_.cap_bytes = options_.memory_cap_bytes;
    forecast_.items = plan_.items;
    forecast_.host_items = plan_.host_items;
    forecast_.total_bytes = plan_.total_bytes();
    forecast_.context = shape.context;
    forecast_.max_sequences = shape.max_sequences;
    forecast_.max_pixels = shape.max_pixels;
    forecast_.kv_format = shape.kv_dtype == DType::f8_e4m3 ? "fp8" : name_of(shape.kv_dtype);
    forecast_.vision_on_demand = shape.streams_vision;
    forecast_.choices = plan_.notices;
    const WhatFits most = find_what_fits(inputs(), options_, shape, limit_);
    forecast_.largest_picture = most.largest_picture;
    forecast_.longest_context = most.longest_context;
    forecast_.most_sequences = most.most_sequences;
  }

  // One sentence for each thing to lower, with what it would save.
  void advise() {
    advise_quantizing();
    const EngineShape& shape = plan_.shape;
    const auto try_lower = [&](bool is_possible, const std::string& what, const auto& change) {
      if (!is_possible) return;
      EngineOptions changed = pinned_options(options_, shape);
      change(changed);
      const int64_t saved = plan_.total_bytes() - plan_as_asked(inputs(), changed).total_bytes();
      if (saved <= 0) return;
      forecast_.advice.push_back(fmt::format("{} saves {} MiB", what, to_mebibytes(saved)));
    };
    try_lower(shape.kv_dtype != DType::f8_e4m3, "--kv fp8",
              [](EngineOptions& o) { o.kv_format = KvFormat::fp8; });
    try_lower(!shape.streams_vision && files_.config.vision.has_value(), "--vision on-demand",
              [](EngineOptions& o) { o.vision = VisionResidency::on_demand; });
    const int64_t half_picture = shape.max_pixels / 2;
    try_lower(half_picture >= shape.min_pixels && half_picture > 0,
              fmt::format("--max-pixels {}", half_picture),
              [&](EngineOptions& o) { o.max_pixels = half_picture; });
    try_lower(shape.max_sequences > 1, fmt::format("--sequences {}", shape.max_sequences / 2),
              [&](EngineOptions& o) { o.max_sequences /= 2; });
    const int64_t half_context = shape.context / 2;
    const int64_t token_pixels = files_.config.vision ? token_pixels_of(*files_.config.vision) : 1;
    const bool holds_picture = shape.max_pixels / token_pixels < half_context;
    try_lower(holds_picture && half_context >= kKvPageTokens,
              fmt::format("--context {}", half_context),
              [&](EngineOptions& o) { o.context = half_context; });
    if (forecast_.verdict == MemoryForecast::Verdict::does_not_fit) advise_larger_card();
  }

  void advise_quantizing() {
    if (options_.quantize_to_fp8 || store_.weight_format() == "fp8") return;
    const WeightFacts smaller = measure_weights(store_, files_.config, *layout_, true);
    const PlanInputs quantized{files_.config, files_.pictures, smaller, target_};
    const int64_t total = plan_as_asked(quantized, options_).total_bytes();
    forecast_.advice.push_back(
        fmt::format("--quantize-fp8 stores the text weights as FP8 while loading: {} MiB in all{}",
                    to_mebibytes(total), total <= limit_ ? ", which fits" : ""));
  }

  void advise_larger_card() {
    const int64_t missing = plan_.total_bytes() - limit_;
    forecast_.advice.push_back(
        fmt::format("{} MiB are missing even so: free them, or choose a smaller model",
                    to_mebibytes(missing) + 1));
  }

  const EngineOptions& options_;
  ModelFiles files_;
  WeightStore store_;
  std::unique_ptr<Backend> layout_;
  WeightFacts weights_;
  PlanTarget target_;
  MemoryForecast forecast_;
  MemoryPlan plan_;
  int64_t limit_ = 0;
};

}  // namespace

MemoryForecast forecast_memory(const EngineOptions& options, int64_t gpu_bytes) {
  return Forecaster(options, gpu_bytes).run();
}

}  // namespace glimpse
