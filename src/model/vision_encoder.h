// The vision tower. A pass over one or more pictures can be cut between any two blocks, so that a
// large picture takes many steps and nobody waits for all of them. Memory is linear in patches:
// attention never crosses a picture, and the MLP runs in chunks of rows.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "glimpse/options.h"
#include "image/image_processor.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/vision_weight_stream.h"
#include "model/weights.h"

namespace glimpse {

/// Rows that the MLP and the patch embedding take at once.
inline constexpr int64_t kVisionChunkRows = 4096;

/// Activations of one pass over at most max_patches patches.
struct VisionActivations {
  Tensor inputs;        // [words] i32: positions, blends and tables, one upload a pass
  Tensor hidden;        // [patches, hidden] f32: the residual stream
  Tensor cosines;       // [patches, head_dim / 2] f32
  Tensor sines;         // the same
  Tensor normed;        // [patches, hidden] activation
  Tensor attended;      // the memory of normed, which is dead once qkv is made
  Tensor qkv;           // [patches, 3 * hidden] activation
  Tensor intermediate;  // [chunk * widest] activation: MLP and merger rows
  // Shares memory with qkv and intermediate: done before the first block.
  Tensor pixels;   // [patches * patch_features] u8: the frames of one picture
  Tensor patches;  // [chunk, patch_features] activation

  [[nodiscard]] static VisionActivations carve(const VisionConfig& config, Arithmetic arithmetic,
                                               int64_t max_patches, Arena& arena);
};

/// A picture to encode, and where its tokens go.
struct VisionPicture {
  PatchGrid grid;
  /// [frames, height, width, 3], one frame for a still; used during begin() only.
  std::span<const uint8_t> pixels;
  VisualTokens output;  // device memory for num_patches / merge_area tokens
};

/// Device memory for the tokens of a picture, taken from `arena`.
[[nodiscard]] VisualTokens carve_visual_tokens(const VisionConfig& config, Arithmetic arithmetic,
                                               int64_t num_tokens, Arena& arena);

/// One pass at a time, on one thread. `weights` must outlive it.
class VisionEncoder {
 public:
  /// With a `stream` the matrices come from there instead of `weights`. Takes its activations from
  /// `arena`; their memory is its own from begin() until advance()
  /// returns true, and free for others between passes.
  VisionEncoder(Backend& backend, const VisionConfig& config, const ImageProcessorConfig& pictures,
                const VisionWeights& weights, Arithmetic arithmetic, int64_t max_patches,
                Arena& arena, VisionWeightStream* stream = nullptr);

  /// Starts a pass: patches, position embeddings and rotary tables. Throws Error(internal) when the
  /// pictures have more than max_patches() together, or a pass is under way.
  void begin(std::span<const VisionPicture> pictures, const TraceFunction& trace = {});
  /// Runs up to `num_blocks` further blocks. True when the pass is done and the outputs are ready.
  bool advance(int64_t num_blocks, const TraceFunction& trace = {});
  /// Drops a pass under way.
  void abandon() { next_block_ = -1; }

  [[nodiscard]] bool is_busy() const { return next_block_ >= 0; }
  [[nodiscard]] int64_t num_blocks() const { return config_.depth; }
  [[nodiscard]] int64_t max_patches() const { return act_.hidden.size(0); }
  [[nodiscard]] const VisionConfig& config() const { return config_; }

 private:
  void stage_inputs(std::span<const VisionPicture> pictures);
  Tensor upload_pixels(const VisionPicture& picture);
  int64_t embed_patches(const VisionPicture& picture, const Tensor& pixels, int64_t row);
  void add_positions();
  /// What stage_inputs() uploaded from word `first` on, under another type.
  [[nodiscard]] Tensor words_at(int64_t first, DType dtype,
                                std::initializer_list<int64_t> shape) const;
  void run_block(const VisionBlockWeights& weights);
  template <typename Output>
  void merge(const VisionMergerWeights& weights, const Output& output);
  [[nodiscard]] const VisionBlockWeights& block_weights(int64_t block);
  [[nodiscard]] const VisionMergerWeights& merger_weights(int64_t index);

  Backend& backend_;
  VisionConfig config_;
  PixelTable pixel_table_;
  const VisionWeights& weights_;
  VisionWeightStream* stream_;  // null: everything is in weights_
  VisionActivations act_;
  std::vector<int32_t> staging_;
  // The pass under way.
  int64_t next_block_ = -1;  // -1: none
  int64_t num_patches_ = 0;
  std::vector<int64_t> segment_begin_;
  std::vector<VisualTokens> outputs_;
};

}  // namespace glimpse
