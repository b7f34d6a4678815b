// config.json and generation_config.json of a checkpoint as plain structs. Both layouts are read:
// transformers 4 (rope_theta and rope_scaling) and 5 (rope_parameters). A key that decides the
// arithmetic must be there; every number is bounded, because the file may come from anywhere.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/json.h"

namespace glimpse {

/// The language half: a Qwen3 decoder.
struct TextConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // not hidden_size / num_heads: the 4B has 32 heads of 128 in 2560
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 0;
  double rope_theta = 0;
  /// Frequencies that follow time, height and width; empty in a text-only model.
  std::optional<std::array<int64_t, 3>> mrope_section;

  [[nodiscard]] DecoderShape shape() const {
    return {hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, rms_norm_eps};
  }
  /// Width of the fused projection of queries, keys and values.
  [[nodiscard]] int64_t qkv_size() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  /// Elements of keys and values that one token adds to the cache, all layers together.
  [[nodiscard]] int64_t kv_elements_per_token() const {
    return 2 * num_layers * num_kv_heads * head_dim;
  }
};

/// The vision tower.
struct VisionConfig {
  int64_t depth = 0;
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t intermediate_size = 0;
  int64_t out_hidden_size = 0;
  int64_t in_channels = 0;
  int64_t patch_size = 0;
  int64_t temporal_patch_size = 0;
  int64_t spatial_merge_size = 0;
  int64_t num_position_embeddings = 0;  // a square table
  double rope_theta = 10000;
  std::vector<int64_t> deepstack_visual_indexes;  // rising; block whose output is tapped

  [[nodiscard]] int64_t head_dim() const { return hidden_size / num_heads; }
  /// Pixels of one patch: a row of the patch embedding's matrix.
  [[nodiscard]] int64_t patch_features() const {
    return in_channels * temporal_patch_size * patch_size * patch_size;
  }
  /// Patches that become one visual token.
  [[nodiscard]] int64_t merge_area() const { return spatial_merge_size * spatial_merge_size; }
  [[nodiscard]] int64_t num_deepstack() const {
    return static_cast<int64_t>(deepstack_visual_indexes.size());
  }
};

struct ModelConfig {
  std::string architecture;  // "Qwen3VLForConditionalGeneration" or "Qwen3ForCausalLM"
  TextConfig text;
  std::optional<VisionConfig> vision;  // absent in a text-only model
  int32_t image_token_id = -1;         // -1: the model has none
  int32_t video_token_id = -1;
  int32_t vision_start_token_id = -1;
  int32_t vision_end_token_id = -1;
  /// config.json's own idea of the end of text; GenerationConfig is what counts.
  std::vector<int32_t> eos_token_ids;

  /// Throws Error(not_found) without config.json, Error(bad_model) naming the key that is missing
  /// or out of range, Error(unsupported) naming what Glimpse does not run.
  static ModelConfig from_directory(const std::filesystem::path& directory);
  static ModelConfig from_json(const Json& object);

  [[nodiscard]] int64_t num_deepstack() const { return vision ? vision->num_deepstack() : 0; }
};

/// How the checkpoint's authors want tokens chosen. Defaults are transformers' own.
struct GenerationConfig {
  bool do_sample = false;
  float temperature = 1;
  float top_p = 1;
  int32_t top_k = 50;
  float min_p = 0;
  float repetition_penalty = 1;
  std::vector<int32_t> eos_token_ids;  // empty: only the token limit ends an answer

  /// Without generation_config.json the model config's end-of-text ids are used.
  static GenerationConfig from_directory(const std::filesystem::path& directory,
                                         const ModelConfig& model);
  static GenerationConfig from_json(const Json& object);
};

}  // namespace glimpse
