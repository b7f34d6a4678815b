// Checkpoints of real shapes with random weights, for measuring speed and memory where the real
// ones cannot be had. Every value follows from the seed, the tensor's name and its index, so any
// piece can be made by any thread, and the files are written at the speed of the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

#include "model/config.h"

namespace glimpse {

/// A model to write. `config` holds the token ids too; eos_token_ids go into
/// generation_config.json.
struct CheckpointShape {
  ModelConfig config;
  bool is_tied = false;  // no lm_head.weight
};

/// "2b", "4b", "8b" or "32b": Qwen3-VL's dense sizes with Qwen's token ids. Throws
/// Error(invalid_argument).
[[nodiscard]] CheckpointShape named_checkpoint_shape(std::string_view name);

struct RandomCheckpointOptions {
  enum class Format { bf16, fp8 };
  Format format = Format::fp8;
  uint64_t seed = 0;
  int64_t max_shard_bytes = int64_t{5} << 30;
  bool is_sparse = false;  // headers before holes instead of weights
  std::function<void(int64_t done_bytes, int64_t total_bytes)> on_progress = {};
};

/// Writes weights and configuration files into an existing directory. Amplitudes keep activations
/// of order 1 through all layers: inputs of a projection are normalised, and what is added to the
/// residual shrinks with the number of layers.
void write_random_checkpoint(const CheckpointShape& shape, const std::filesystem::path& directory,
                             const RandomCheckpointOptions& options);

}  // namespace glimpse
