#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "glimpse/engine.h"
#include "glimpse/options.h"

namespace glimpse {

/// What an engine would take of a GPU's memory, and what it could take instead.
struct MemoryForecast {
  enum class Verdict {
    fits,
    tight,         ///< only after automatic choices, or with less than kTightBytes left free
    does_not_fit,  ///< not even after every automatic choice
  };
  /// What another window or browser tab may take of a card with a desktop.
  static constexpr int64_t kTightBytes = int64_t{256} << 20;

  Verdict verdict = Verdict::fits;
  std::string model;
  std::string weight_format;  ///< as the plan stores it: "fp8", "bf16", ...
  std::string card;           ///< its name, or "a card of 8.0 GiB"
  int64_t card_bytes = 0;
  int64_t desktop_bytes = 0;      ///< in use by other programs, or assumed to be
  int64_t free_bytes = 0;         ///< the rest
  int64_t cap_bytes = 0;          ///< EngineOptions::memory_cap_bytes; 0: none
  std::vector<MemoryItem> items;  ///< of the card
  int64_t total_bytes = 0;        ///< their sum
  std::vector<MemoryItem> host_items;
  int64_t context = 0;  ///< what was planned, after automatic choices
  int max_sequences = 0;
  int64_t max_pixels = 0;
  std::string kv_format;
  bool vision_on_demand = false;
  int64_t largest_picture = 0;  ///< pixels; with the rest as planned, 0: none
  int64_t longest_context = 0;
  int most_sequences = 0;
  std::vector<std::string> choices;  ///< what was chosen automatically, one sentence each
  std::vector<std::string> advice;   ///< what to lower or change, one sentence each
};

/// Plans `options` for the GPU of this machine, or for one of `gpu_bytes` of which a desktop takes
/// its usual share; without either for one of 8 GiB. Reads configuration and the headers of the
/// weights, loads nothing and needs no GPU. Throws Error for a model that cannot be used.
[[nodiscard]] MemoryForecast forecast_memory(const EngineOptions& options, int64_t gpu_bytes = 0);

}  // namespace glimpse
