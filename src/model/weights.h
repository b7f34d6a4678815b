// The weights of both towers as structs of named tensors, bound to the checkpoint's names by the
// tables in weights.cpp and laid out by the backend.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weight_store.h"

namespace glimpse {

struct LanguageWeights {
  Tensor embed_tokens;  // [vocab, hidden] in its stored dtype
  std::vector<DecoderLayerWeights> layers;
  Tensor norm;           // [hidden] f32
  LinearWeight lm_head;  // [vocab, hidden]; the memory of embed_tokens when tied
};

struct LayerNormWeights {
  Tensor weight;  // [dim] f32
  Tensor bias;    // [dim] f32
};

struct VisionBlockWeights {
  LayerNormWeights norm1;   // [hidden]
  LinearWeight qkv;         // [3 * hidden, hidden]
  LinearWeight proj;        // [hidden, hidden]
  LayerNormWeights norm2;   // [hidden]
  LinearWeight linear_fc1;  // [intermediate, hidden]
  LinearWeight linear_fc2;  // [hidden, intermediate]
};

struct VisionMergerWeights {
  LayerNormWeights norm;    // main merger [hidden], DeepStack mergers [merge_area * hidden]
  LinearWeight linear_fc1;  // [merge_area * hidden, merge_area * hidden]
  LinearWeight linear_fc2;  // [out_hidden, merge_area * hidden]
};

struct VisionWeights {
  LinearWeight patch_embed;  // [hidden, patch_features]
  Tensor pos_embed;          // [num_position_embeddings, hidden] f32 or bf16
  std::vector<VisionBlockWeights> blocks;
  VisionMergerWeights merger;
  std::vector<VisionMergerWeights> deepstack_mergers;
};

/// How weights are bound. FP8 weights are searched for NaN codes, which the kernels do not handle,
/// when they are bound: the pass runs at memory speed on all cores and brings their pages in. With
/// a measuring arena the layout and its bytes are right, and no weight is read, checked or
/// quantised.
struct BindOptions {
  /// Store the decoder's BF16 projections as block FP8 (model/quantize.h).
  bool quantize_to_fp8 = false;
  /// Leave the matrices of the vision tower's blocks and mergers out: a VisionWeightStream brings
  /// them when they are needed.
  bool streams_vision = false;
  /// Give the file's pages back to the page cache once a device has its own copy.
  bool releases_pages = true;
  /// Called as weights become ready with the bytes of the checkpoint done so far.
  std::function<void(int64_t done_bytes)> on_progress = {};
};

/// Throws Error(bad_model) naming the tensor that is missing, misshapen or holds NaN in FP8.
/// Views of the store's mapped files remain where the backend works on host memory.
[[nodiscard]] LanguageWeights bind_language_weights(WeightStore& store, const TextConfig& config,
                                                    Backend& backend, Arena& arena,
                                                    const BindOptions& options = {});
[[nodiscard]] VisionWeights bind_vision_weights(WeightStore& store, const VisionConfig& config,
                                                Backend& backend, Arena& arena,
                                                const BindOptions& options = {});

}  // namespace glimpse
