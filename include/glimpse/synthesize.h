#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace glimpse {

/// A checkpoint of a real shape with seeded random weights, for benchmarks and memory tests where
/// the real one cannot be had.
struct SynthesizeOptions {
  std::string shape = "2b";    ///< "2b", "4b", "8b" or "32b"
  std::string format = "fp8";  ///< "bf16", or "fp8": text projections in 128x128 blocks, rest BF16
  std::filesystem::path directory;  ///< made when absent; must not hold a checkpoint already
  std::filesystem::path tokenizer;  ///< a tokenizer.json to put beside the weights; or empty
  uint64_t seed = 0;
  /// Weights are zeros that take no room on the disk: good for memory plans, for nothing else.
  bool is_sparse = false;
  std::function<void(int64_t done_bytes, int64_t total_bytes)> on_progress;
};

/// Writes config.json, generation_config.json, preprocessor_config.json, the weights as safetensors
/// (sharded above 5 GB, with an index) and the tokenizer when one is given. Throws Error.
void synthesize_checkpoint(const SynthesizeOptions& options);

}  // namespace glimpse
