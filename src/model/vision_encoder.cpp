#include "model/vision_encoder.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "model/language_model.h"
#include "model/rotary.h"

namespace glimpse {
namespace {

constexpr float kLayerNormEpsilon = 1e-6F;
constexpr int64_t kBlendCorners = 4;
constexpr int64_t kWordsPerPatch = 2 * kBlendCorners + 2;  // indices, weights, row, column

void trace_tensor(const TraceFunction& trace, std::string_view name, int64_t index,
                  const Tensor& value) {
  if (trace) trace(name, index, value);
}

// The beginning of a buffer under another shape.
Tensor reshape_front(const Tensor& buffer, std::initializer_list<int64_t> shape) {
  const Tensor result(buffer.raw(), buffer.dtype(), buffer.device(), shape);
  check(result.num_elements() <= buffer.num_elements(), "the view leaves its buffer");
  return result;
}

// Words after the patches' own: the tables that rotary_table() and cut_patches() read.
int64_t table_words(const VisionConfig& config) {
  return config.head_dim() + kPixelTableSize;
}

}  // namespace

VisionActivations VisionActivations::carve(const VisionConfig& config, Arithmetic arithmetic,
                                           int64_t max_patches, Arena& arena) {
  const DType dtype = activation_dtype(arithmetic);
  const int64_t hidden = config.hidden_size;
  const int64_t chunk = std::min(max_patches, kVisionChunkRows);
  VisionActivations act;
  act.inputs = arena.allocate(DType::i32, {kWordsPerPatch * max_patches + table_words(config)});
  act.hidden = arena.allocate(DType::f32, {max_patches, hidden});
  act.cosines = arena.allocate(DType::f32, {max_patches, config.head_dim() / 2});
  act.sines = arena.allocate(DType::f32, {max_patches, config.head_dim() / 2});
  act.normed = arena.allocate(dtype, {max_patches, hidden});
  act.attended = act.normed;
  const int64_t mark = arena.used_bytes();
  act.qkv = arena.allocate(dtype, {max_patches, 3 * hidden});
  // A chunk of the merger is as wide as its patches together.
  act.intermediate = arena.allocate(dtype, {chunk * std::max(config.intermediate_size, hidden)});
  const int64_t blocks_end = arena.used_bytes();
  arena.rewind(mark);
  act.pixels = arena.allocate(DType::u8, {max_patches * config.patch_features()});
  act.patches = arena.allocate(dtype, {chunk, config.patch_features()});
  // Both uses of the memory stay allocated: what is left of the longer one.
  if (arena.used_bytes() < blocks_end) {
    static_cast<void>(arena.allocate(DType::u8, {blocks_end - arena.used_bytes()}));
  }
  return act;
}

VisualTokens carve_visual_tokens(const VisionConfig& config, Arithmetic arithmetic,
                                 int64_t num_tokens, Arena& arena) {
  const DType dtype = activation_dtype(arithmetic);
  VisualTokens tokens;
  tokens.embeddings = arena.allocate(dtype, {num_tokens, config.out_hidden_size});
  for (int64_t i = 0; i < config.num_deepstack(); ++i) {
    tokens.deepstack.push_back(arena.allocate(dtype, {num_tokens, config.out_hidden_size}));
  }
  return tokens;
}

VisionEncoder::VisionEncoder(Backend& backend, const VisionConfig& config,
                             const ImageProcessorConfig& pictures, const VisionWeights& weights,
                             Arithmetic arithmetic, int64_t max_patches, Arena& arena,
                             VisionWeightStream* stream)
    : backend_(backend),
      config_(config),
      pixel_table_(make_pixel_table(pictures)),
      weights_(weights),
      stream_(stream),
      act_(VisionActivations::carve(config, arithmetic, max_patches, arena)) {
  check(!arena.is_measuring(), "an encoder needs memory; VisionActivations::carve() measures");
}

void VisionEncoder::begin(std::span<const VisionPicture> pictures, const TraceFunction& trace) {
  check(!is_busy(), "a vision pass is under way");
  num_patches_ = 0;
  segment_begin_.assign(1, 0);
  outputs_.clear();
  for (const VisionPicture& picture : pictures) {
    const int64_t patches = picture.grid.num_patches();
    check(picture.output.num_tokens() * config_.merge_area() == patches &&
              picture.output.deepstack.size() == config_.deepstack_visual_indexes.size(),
          "a picture's outputs do not fit its grid");
    // Attention stays inside one temporal slice.
    for (int slice = 0; slice < picture.grid.t; ++slice) {
      num_patches_ += patches / picture.grid.t;
      segment_begin_.push_back(num_patches_);
    }
    outputs_.push_back(picture.output);
  }
  check(num_patches_ > 0 && num_patches_ <= max_patches(), "a vision pass has too many patches");
  // The first picture is on its way to the device while the host works out the rest.
  Tensor pixels = upload_pixels(pictures.front());
  stage_inputs(pictures);
  int64_t row = 0;
  for (const VisionPicture& picture : pictures) {
    if (row > 0) pixels = upload_pixels(picture);
    row = embed_patches(picture, pixels, row);
  }
  trace_tensor(trace, "vision.patch_embed", -1, act_.hidden.slice(0, 0, num_patches_));
  add_positions();
  trace_tensor(trace, "vision.embedded", -1, act_.hidden.slice(0, 0, num_patches_));
  next_block_ = 0;
}

// Uploads what depends on where patches are, and the tables.
void VisionEncoder::stage_inputs(std::span<const VisionPicture> pictures) {
  const int64_t patches = num_patches_;
  const int64_t half = config_.head_dim() / 2;
  const int64_t weights_begin = kBlendCorners * patches;
  const int64_t positions_begin = 2 * kBlendCorners * patches;
  const int64_t tables_begin = kWordsPerPatch * patches;
  staging_.resize(static_cast<size_t>(tables_begin + table_words(config_)));
  int64_t row = 0;
  for (const VisionPicture& picture : pictures) {
    const PositionBlend blend =
        position_blend(picture.grid, config_.spatial_merge_size, config_.num_position_embeddings);
    std::copy(blend.indices.begin(), blend.indices.end(), staging_.begin() + kBlendCorners * row);
    std::transform(blend.weights.begin(), blend.weights.end(),
                   staging_.begin() + weights_begin + kBlendCorners * row,
                   [](float weight) { return std::bit_cast<int32_t>(weight); });
    for (const PatchPosition& patch : patch_positions(picture.grid, config_.spatial_merge_size)) {
      staging_[static_cast<size_t>(positions_begin + row)] = patch.row;
      staging_[static_cast<size_t>(positions_begin + patches + row)] = patch.column;
      ++row;
    }
  }
  // The first half of the angles follows the row, the second the column, with equal frequencies.
  const std::vector<float> frequencies = inverse_frequencies(config_.rope_theta, half);
  for (int64_t i = 0; i < half; ++i) {
    const float frequency = frequencies[static_cast<size_t>(i % (half / 2))];
    staging_[static_cast<size_t>(tables_begin + i)] = std::bit_cast<int32_t>(frequency);
    staging_[static_cast<size_t>(tables_begin + half + i)] = i < half / 2 ? 0 : 1;
  }
  std::transform(pixel_table_.begin(), pixel_table_.end(),
                 staging_.begin() + tables_begin + 2 * half,
                 [](float value) { return std::bit_cast<int32_t>(value); });
  backend_.upload(std::as_bytes(std::span(staging_)),
                  act_.inputs.slice(0, 0, static_cast<int64_t>(staging_.size())));
}

Tensor VisionEncoder::words_at(int64_t first, DType dtype,
                               std::initializer_list<int64_t> shape) const {
  return {act_.inputs.slice(0, first, 1).raw(), dtype, act_.inputs.device(), shape};
}

// Pixels go to the device as bytes, a quarter of what their patches take, and a still's frames are
// made there.
Tensor VisionEncoder::upload_pixels(const VisionPicture& picture) {
  const int64_t height = picture.grid.h * config_.patch_size;
  const int64_t width = picture.grid.w * config_.patch_size;
  const int64_t per_patch = config_.temporal_patch_size;
  const auto bytes = static_cast<int64_t>(picture.pixels.size());
  const int64_t frames = bytes / (height * width * 3);
  check(bytes == frames * height * width * 3 &&
            (frames + per_patch - 1) / per_patch == picture.grid.t,
        "a picture's pixels do not fit its grid");
  const Tensor pixels = reshape_front(act_.pixels, {frames, height, width, 3});
  backend_.upload(std::as_bytes(picture.pixels), pixels);
  return pixels;
}

// Into the rows of the residual stream from `row` on; returns the row after the last.
int64_t VisionEncoder::embed_patches(const VisionPicture& picture, const Tensor& pixels,
                                     int64_t row) {
  const Tensor table =
      words_at(kWordsPerPatch * num_patches_ + config_.head_dim(), DType::f32, {3, kPixelValues});
  const int64_t chunk = act_.patches.size(0);
  const int64_t patches = picture.grid.num_patches();
  PatchOrder order{.side = config_.patch_size,
                   .merge = config_.spatial_merge_size,
                   .frames = config_.temporal_patch_size};
  for (; order.first < patches; order.first += chunk) {
    const int64_t count = std::min(chunk, patches - order.first);
    const Tensor part = act_.patches.slice(0, 0, count);
    backend_.cut_patches(pixels, table, order, part);
    backend_.linear(part, weights_.patch_embed, act_.hidden.slice(0, row, count));
    row += count;
  }
  return row;
}

// Adds the position embeddings and makes the rotary tables.
void VisionEncoder::add_positions() {
  const int64_t patches = num_patches_;
  const int64_t half = config_.head_dim() / 2;
  const int64_t tables_begin = kWordsPerPatch * patches;
  backend_.blend_rows(weights_.pos_embed, words_at(0, DType::i32, {patches, kBlendCorners}),
                      words_at(kBlendCorners * patches, DType::f32, {patches, kBlendCorners}),
                      act_.hidden.slice(0, 0, patches));
  backend_.rotary_table(words_at(2 * kBlendCorners * patches, DType::i32, {2, patches}),
                        words_at(tables_begin, DType::f32, {half}),
                        words_at(tables_begin + half, DType::i32, {half}),
                        act_.cosines.slice(0, 0, patches), act_.sines.slice(0, 0, patches));
}

bool VisionEncoder::advance(int64_t num_blocks, const TraceFunction& trace) {
  check(is_busy(), "no vision pass is under way");
  const std::vector<int64_t>& taps = config_.deepstack_visual_indexes;
  const int64_t end = std::min(config_.depth, next_block_ + num_blocks);
  for (; next_block_ < end; ++next_block_) {
    run_block(block_weights(next_block_));
    trace_tensor(trace, "vision.block", next_block_, act_.hidden.slice(0, 0, num_patches_));
    const auto tap = std::find(taps.begin(), taps.end(), next_block_);
    if (tap == taps.end()) continue;
    const int64_t index = tap - taps.begin();
    merge(merger_weights(index),
          [&](const VisualTokens& tokens) { return tokens.deepstack[static_cast<size_t>(index)]; });
  }
  if (next_block_ < config_.depth) return false;
  merge(merger_weights(kMainMerger), [](const VisualTokens& tokens) { return tokens.embeddings; });
  next_block_ = -1;
  return true;
}

const VisionBlockWeights& VisionEncoder::block_weights(int64_t block) {
  if (stream_ != nullptr) return stream_->block(block);
  return weights_.blocks[static_cast<size_t>(block)];
}

const VisionMergerWeights& VisionEncoder::merger_weights(int64_t index) {
  if (stream_ != nullptr) return stream_->merger(index);
  if (index == kMainMerger) return weights_.merger;
  return weights_.deepstack_mergers[static_cast<size_t>(index)];
}

void VisionEncoder::run_block(const VisionBlockWeights& weights) {
  const int64_t heads = config_.num_heads;
  const int64_t width = config_.hidden_size;
  const Tensor hidden = act_.hidden.slice(0, 0, num_patches_);
  const Tensor normed = act_.normed.slice(0, 0, num_patches_);
  const Tensor qkv = act_.qkv.slice(0, 0, num_patches_);
  const Tensor cosines = act_.cosines.slice(0, 0, num_patches_);
  const Tensor sines = act_.sines.slice(0, 0, num_patches_);

  backend_.layer_norm(hidden, weights.norm1.weight, weights.norm1.bias, kLayerNormEpsilon, normed);
  // q and k are turned, v is not.
  backend_.linear_rotate(normed, weights.qkv, {cosines, sines, 2 * heads}, qkv);
  const Tensor q = qkv.slice(1, 0, width).split_last(heads);          // [patches, heads, head_dim]
  const Tensor k = qkv.slice(1, width, width).split_last(heads);      // the same
  const Tensor v = qkv.slice(1, 2 * width, width).split_last(heads);  // the same
  const Tensor attended = act_.attended.slice(0, 0, num_patches_);
  backend_.attend_packed(q, k, v, segment_begin_, attended.split_last(heads));
  backend_.linear_add(attended, weights.proj, hidden);

  backend_.layer_norm(hidden, weights.norm2.weight, weights.norm2.bias, kLayerNormEpsilon, normed);
  for (int64_t first = 0; first < num_patches_; first += kVisionChunkRows) {
    const int64_t count = std::min(kVisionChunkRows, num_patches_ - first);
    const Tensor middle = reshape_front(act_.intermediate, {count, config_.intermediate_size});
    backend_.linear_gelu(normed.slice(0, first, count), weights.linear_fc1,
                         GeluKind::tanh_approximation, middle);
    backend_.linear_add(middle, weights.linear_fc2, hidden.slice(0, first, count));
  }
}

// The main merger normalises patches and then joins those of a block; the DeepStack mergers join
// first: the size of the norm says which.
template <typename Output>
void VisionEncoder::merge(const VisionMergerWeights& weights, const Output& output) {
  const int64_t area = config_.merge_area();
  const int64_t merged = area * config_.hidden_size;
  const int64_t norm_size = weights.norm.weight.size(0);
  const int64_t chunk = kVisionChunkRows / area;  // in tokens
  int64_t patch = 0;
  for (const VisualTokens& tokens : outputs_) {
    for (int64_t first = 0; first < tokens.num_tokens(); first += chunk) {
      const int64_t count = std::min(chunk, tokens.num_tokens() - first);
      const int64_t norm_rows = count * merged / norm_size;
      const Tensor hidden = act_.hidden.slice(0, patch, count * area).view({norm_rows, norm_size});
      const Tensor normed = act_.normed.slice(0, 0, count * area).view({norm_rows, norm_size});
      backend_.layer_norm(hidden, weights.norm.weight, weights.norm.bias, kLayerNormEpsilon,
                          normed);
      const Tensor middle = reshape_front(act_.intermediate, {count, merged});
      backend_.linear_gelu(normed.view({count, merged}), weights.linear_fc1, GeluKind::exact_erf,
                           middle);
      backend_.linear(middle, weights.linear_fc2, output(tokens).slice(0, first, count));
      patch += count * area;
    }
  }
}

}  // namespace glimpse
