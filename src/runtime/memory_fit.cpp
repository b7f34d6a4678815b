#include "runtime/memory_fit.h"

#include <algorithm>

#include <fmt/ranges.h>

namespace glimpse {
namespace {

// How far automatic choices go.
constexpr int64_t kLeastMaxPixels = 1 << 20;
constexpr int64_t kLeastContext = 1024;

int64_t round_up_to_mebibytes(int64_t bytes) {
  return (bytes + (1 << 20) - 1) >> 20;
}

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
  announce(lowered.max_sequences < asked.max_sequences,
           lowered.max_sequences == 1
               ? "requests are computed one at a time"
               : fmt::format("at most {} sequences are computed together", lowered.max_sequences));
  announce(lowered.context < asked.context,
           fmt::format("the context is {} tokens", lowered.context));
  return sentences;
}

// Lowers one choice after the other; each step is a no-op once the plan fits.
class Lowering {
 public:
  Lowering(const PlanInputs& inputs, const EngineOptions& asked, int64_t limit)
      : inputs_(inputs),
        asked_(asked),
        options_(asked),
        limit_(limit),
        plan_(plan_as_asked(inputs, asked)) {}

  void lower_pictures() {
    if (asked_.max_pixels != 0) return;
    while (is_too_large() && plan_.shape.max_pixels > kLeastMaxPixels) {
      options_.max_pixels = std::max<int64_t>(plan_.shape.max_pixels / 2, kLeastMaxPixels);
      plan_again();
    }
  }
  void lower_kv() {
    if (!is_too_large() || asked_.kv_format != KvFormat::automatic) return;
    options_.kv_format = KvFormat::fp8;
    plan_again();
  }
  void lower_vision() {
    if (!is_too_large() || asked_.vision != VisionResidency::automatic) return;
    if (!inputs_.config.vision) return;
    options_.vision = VisionResidency::on_demand;
    plan_again();
  }
  void lower_sequences() {
    while (is_too_large() && asked_.fewer_sequences && plan_.shape.max_sequences > 1) {
      options_.max_sequences = plan_.shape.max_sequences / 2;
      plan_again();
    }
  }
  void lower_context() {
    while (is_too_large() && asked_.context == 0 && plan_.shape.context > kLeastContext) {
      options_.context = std::max<int64_t>(plan_.shape.context / 2, kLeastContext);
      if (asked_.max_pixels == 0 && inputs_.config.vision) {  // the picture follows it down
        options_.max_pixels =
            std::min(plan_.shape.max_pixels,
                     fitting_pixels(options_.context, token_pixels_of(*inputs_.config.vision)));
      }
      plan_again();
    }
  }
  [[nodiscard]] MemoryPlan take() { return std::move(plan_); }

 private:
  [[nodiscard]] bool is_too_large() const { return plan_.total_bytes() > limit_; }
  void plan_again() { plan_ = plan_as_asked(inputs_, options_); }

  const PlanInputs& inputs_;
  const EngineOptions& asked_;
  EngineOptions options_;
  int64_t limit_;
  MemoryPlan plan_;
};

// The most of `least` to `most` for which `fits` says yes; 0 when it never does. What fits once
// fits for everything below.
template <typename Fits>
int64_t most_that_fits(int64_t least, int64_t most, const Fits& fits) {
  int64_t best = 0;
  while (least <= most) {
    const int64_t middle = least + (most - least) / 2;
    if (fits(middle)) {
      best = middle;
      least = middle + 1;
    } else {
      most = middle - 1;
    }
  }
  return best;
}

KvFormat format_of(DType dtype) {
  if (dtype == DType::f32) return KvFormat::f32;
  return dtype == DType::bf16 ? KvFormat::bf16 : KvFormat::fp8;
}

int64_t blocks_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

}  // namespace

int64_t memory_limit(const PlanTarget& target, const EngineOptions& options) {
  const int64_t cap = options.memory_cap_bytes;
  return cap > 0 && (target.free_bytes == 0 || cap < target.free_bytes) ? cap : target.free_bytes;
}

MemoryPlan lower_to_fit(const PlanInputs& inputs, const EngineOptions& options, int64_t limit) {
  const EngineShape asked = plan_as_asked(inputs, options).shape;
  Lowering lowering(inputs, options, limit);
  lowering.lower_pictures();
  lowering.lower_kv();
  lowering.lower_vision();
  lowering.lower_sequences();
  lowering.lower_context();
  MemoryPlan plan = lowering.take();
  for (std::string& sentence : announcements(asked, plan.shape)) {
    plan.notices.push_back(std::move(sentence));
  }
  return plan;
}

EngineOptions pinned_options(const EngineOptions& options, const EngineShape& shape) {
  EngineOptions pinned = options;
  pinned.context = shape.context;
  pinned.max_sequences = shape.max_sequences;
  pinned.kv_format = format_of(shape.kv_dtype);
  pinned.min_pixels = shape.min_pixels;
  pinned.max_pixels = shape.max_pixels;
  pinned.vision = shape.streams_vision ? VisionResidency::on_demand : VisionResidency::resident;
  return pinned;
}

WhatFits find_what_fits(const PlanInputs& inputs, const EngineOptions& options,
                        const EngineShape& shape, int64_t limit) {
  const EngineOptions pinned = pinned_options(options, shape);
  const auto fits = [&](const EngineOptions& changed) {
    return limit == 0 || plan_as_asked(inputs, changed).total_bytes() <= limit;
  };
  WhatFits result;
  int64_t picture_tokens = 0;
  if (inputs.config.vision) {
    const int64_t token_pixels = token_pixels_of(*inputs.config.vision);
    picture_tokens = shape.max_pixels / token_pixels;
    const int64_t most =
        std::max(fitting_pixels(shape.context, token_pixels) / token_pixels, picture_tokens);
    EngineOptions changed = pinned;
    result.largest_picture =
        token_pixels *
        most_that_fits(blocks_of(shape.min_pixels, token_pixels), most, [&](int64_t tokens) {
          changed.max_pixels = tokens * token_pixels;
          return fits(changed);
        });
  }
  EngineOptions changed = pinned;
  changed.kv_tokens = 0;
  result.longest_context =
      kKvPageTokens * most_that_fits(blocks_of(picture_tokens + 1, kKvPageTokens),
                                     inputs.config.text.max_position_embeddings / kKvPageTokens,
                                     [&](int64_t pages) {
                                       changed.context = pages * kKvPageTokens;
                                       return fits(changed);
                                     });
  changed = pinned;
  result.most_sequences = static_cast<int>(most_that_fits(1, kMaxSequences, [&](int64_t sequences) {
    changed.max_sequences = static_cast<int>(sequences);
    return fits(changed);
  }));
  return result;
}

void refuse(const PlanInputs& inputs, const EngineOptions& options, const MemoryPlan& plan,
            int64_t limit) {
  int64_t left = limit;
  auto item = plan.items.begin();
  while (item != plan.items.end() - 1 && item->bytes <= left) left -= (item++)->bytes;
  const WhatFits most = find_what_fits(inputs, options, plan.shape, limit);
  std::vector<std::string> ways;
  if (most.longest_context > 0) ways.push_back(fmt::format("--context {}", most.longest_context));
  if (most.largest_picture > 0) {
    ways.push_back(fmt::format("--max-pixels {}", most.largest_picture));
  }
  if (most.most_sequences > 0) {
    ways.push_back(fmt::format("{} sequences at once", most.most_sequences));
  }
  throw Error(
      ErrorCode::out_of_memory,
      fmt::format("the model needs {} MiB and {} MiB may be used: the {} takes {} MiB, {} MiB are "
                  "left for it",
                  round_up_to_mebibytes(plan.total_bytes()), limit >> 20, item->name,
                  round_up_to_mebibytes(item->bytes), left >> 20),
      ways.empty() ? "no context and no picture is small enough: a smaller model, or FP8 weights "
                     "(--quantize-fp8), may fit"
                   : fmt::format("what would fit, each with the rest as it is: {}",
                                 fmt::join(ways, ", or ")));
}

}  // namespace glimpse
