// A checkpoint on a backend with all that a forward pass needs, as the engine would set it up: one
// sequence, pages in a scrambled order so that no test passes by luck of a contiguous cache.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/mapped_file.h"
#include "cpu/cpu_backend.h"
#include "model/config.h"
#include "model/language_model.h"
#include "model/rotary.h"
#include "model/vision_encoder.h"
#include "model/weights.h"

namespace glimpse::testing {

/// "reference", "cpu" or "cuda".
inline std::unique_ptr<Backend> make_backend(const std::string& name) {
  if (name == "reference") return create_reference_backend();
  if (name == "cpu") return create_cpu_backend(2);
  return create_backend({.choice = BackendOptions::Choice::cuda});
}

/// Whether it can be made here; GPUs are rare where tests run.
inline bool has_backend(const std::string& name) {
  try {
    return make_backend(name) != nullptr;
  } catch (const Error&) {
    return false;
  }
}

inline std::vector<float> download_floats(Backend& backend, const Tensor& tensor) {
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.num_bytes()));
  backend.download(tensor, bytes);
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  dispatch_activation(tensor.dtype(), [&]<typename T>() {
    const T* source = reinterpret_cast<const T*>(bytes.data());
    std::transform(source, source + values.size(), values.begin(), [](T x) { return to_float(x); });
  });
  return values;
}

/// What lay() takes from an arena, first measured and then in memory of exactly that size.
template <typename Lay>
Arena measured_arena(Backend& backend, std::string name, const Lay& lay) {
  Arena measuring = Arena::measuring(backend.device());
  lay(measuring);
  return Arena(backend.allocate(std::max<int64_t>(measuring.peak_bytes(), 1), name), name);
}

/// A picture as patches.
struct TestPicture {
  PatchGrid grid;
  std::vector<uint8_t> pixels;  // [frames, height, width, 3]
};

struct TestModelOptions {
  Arithmetic arithmetic = Arithmetic::exact;
  bool quantize_to_fp8 = false;
  bool streams_vision = false;
  std::optional<DType> kv_dtype = {};  // the activations' when empty
  int64_t max_patches = 2048;
  int64_t max_rows = 512;
};

class TestModel {
 public:
  static constexpr int64_t kMaxPages = 24;

  TestModel(std::unique_ptr<Backend> backend, const std::filesystem::path& directory,
            const TestModelOptions& options = {})
      : backend_(std::move(backend)),
        options_(options),
        config_(ModelConfig::from_directory(directory)),
        store_(directory) {
    const BindOptions bind{.quantize_to_fp8 = options.quantize_to_fp8};
    const auto bind_all = [&](Arena& arena) {
      language_weights_ = bind_language_weights(store_, config_.text, *backend_, arena, bind);
      if (!config_.vision) return;
      vision_weights_ = bind_vision_weights(store_, *config_.vision, *backend_, arena,
                                            {.streams_vision = options.streams_vision});
    };
    weights_arena_.emplace(measured_arena(*backend_, "weights", bind_all));
    bind_all(*weights_arena_);
    const StepLimits limits{options.max_rows, 1, kMaxPages, options.max_rows};
    const DType kv_dtype = options.kv_dtype.value_or(activation_dtype(options.arithmetic));
    const auto lay_out = [&](Arena& arena) {
      activations_ =
          LanguageActivations::carve(config_.text, options.arithmetic, options.max_rows, arena);
      kv_.clear();
      for (int64_t layer = 0; layer < config_.text.num_layers; ++layer) {
        const auto pages = [&] {
          return arena.allocate(kv_dtype, {kMaxPages, config_.text.num_kv_heads, kKvPageTokens,
                                           config_.text.head_dim});
        };
        const auto scales = [&] {
          if (kv_dtype != DType::f8_e4m3) return Tensor();
          return arena.allocate(DType::f32, {kMaxPages, config_.text.num_kv_heads, kKvPageTokens});
        };
        PagedKv layer_kv;
        layer_kv.keys = pages();
        layer_kv.values = pages();
        layer_kv.key_scales = scales();
        layer_kv.value_scales = scales();
        kv_.push_back(layer_kv);
      }
    };
    const auto measure = [&](Arena& arena) {
      lay_out(arena);
      static_cast<void>(StepBuffers::carve(config_.text, options.arithmetic, limits, arena));
      if (!config_.vision) return;
      static_cast<void>(VisionActivations::carve(*config_.vision, options.arithmetic,
                                                 options.max_patches, arena));
    };
    const int64_t slot_bytes =
        options.streams_vision ? VisionWeightStream::slot_bytes(store_, *config_.vision, *backend_)
                               : 0;
    const auto measure_all = [&](Arena& arena) {
      measure(arena);
      if (options.streams_vision) VisionWeightStream::carve(slot_bytes, arena);
    };
    step_arena_.emplace(measured_arena(*backend_, "steps", measure_all));
    lay_out(*step_arena_);
    language_.emplace(*backend_, config_.text, language_weights_, options.arithmetic, limits,
                      *step_arena_);
    if (!config_.vision) return;
    if (options.streams_vision) {
      stream_.emplace(store_, *config_.vision, *backend_, vision_weights_, *step_arena_);
    }
    vision_.emplace(*backend_, *config_.vision, ImageProcessorConfig{}, vision_weights_,
                    options.arithmetic, options.max_patches, *step_arena_,
                    stream_ ? &*stream_ : nullptr);
  }

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] Backend& backend() { return *backend_; }
  [[nodiscard]] const LanguageWeights& language_weights() const { return language_weights_; }
  [[nodiscard]] VisionEncoder& vision() { return *vision_; }
  [[nodiscard]] int64_t weight_bytes() const { return weights_arena_->used_bytes(); }
  [[nodiscard]] int64_t step_bytes() const { return step_arena_->used_bytes(); }

  /// Encodes pictures in one pass, `blocks_at_once` blocks a step, and keeps their tokens.
  void encode(const std::vector<TestPicture>& pictures, const TraceFunction& trace = {},
              int64_t blocks_at_once = 1000) {
    const auto carve = [&](Arena& arena) {
      visual_.clear();
      for (const TestPicture& picture : pictures) {
        const int64_t tokens = picture.grid.num_patches() / config_.vision->merge_area();
        visual_.push_back(carve_visual_tokens(*config_.vision, options_.arithmetic, tokens, arena));
      }
    };
    visual_arena_.emplace(measured_arena(*backend_, "visual tokens", carve));
    carve(*visual_arena_);
    std::vector<VisionPicture> work;
    grids_.clear();
    for (size_t i = 0; i < pictures.size(); ++i) {
      work.push_back({pictures[i].grid, pictures[i].pixels, visual_[i]});
      grids_.push_back(pictures[i].grid);
    }
    vision_->begin(work, trace);
    while (!vision_->advance(blocks_at_once, trace)) {
    }
  }
  [[nodiscard]] const std::vector<VisualTokens>& visual() const { return visual_; }

  /// Starts a new sequence and returns logits of all its tokens [T, vocab], computed in chunks.
  std::vector<float> prefill(const std::vector<int32_t>& ids, const TraceFunction& trace = {},
                             int64_t chunk = 100000) {
    const int64_t merge = config_.vision ? config_.vision->spatial_merge_size : 1;
    spans_ = find_visual_spans(ids, config_.image_token_id, grids_, merge);
    positions_ = sequence_positions(static_cast<int64_t>(ids.size()), spans_, merge);
    num_tokens_ = 0;
    std::vector<float> logits;
    while (num_tokens_ < static_cast<int64_t>(ids.size())) {
      const int64_t count =
          std::min<int64_t>(chunk, static_cast<int64_t>(ids.size()) - num_tokens_);
      const std::vector<float> rows =
          step(std::span(ids).subspan(static_cast<size_t>(num_tokens_), static_cast<size_t>(count)),
               trace);
      logits.insert(logits.end(), rows.begin(), rows.end());
    }
    return logits;
  }

  /// Logits [vocab] after one more token.
  std::vector<float> decode(int32_t id) {
    for (auto& axis : positions_.axes) axis.push_back(positions_.next_position);
    ++positions_.next_position;
    return step({&id, 1}, {});
  }

  [[nodiscard]] const SequencePositions& positions() const { return positions_; }

  /// `count` greedy tokens after a prompt, the end-of-text token included when it comes first.
  std::vector<int32_t> greedy(const std::vector<int32_t>& prompt, size_t count,
                              std::optional<int32_t> stop = {}) {
    std::vector<float> logits = prefill(prompt);
    logits.erase(logits.begin(), logits.end() - config_.text.vocab_size);
    std::vector<int32_t> ids;
    while (true) {
      const auto best = std::max_element(logits.begin(), logits.end());
      ids.push_back(static_cast<int32_t>(best - logits.begin()));
      if (ids.size() == count || ids.back() == stop) return ids;
      logits = decode(ids.back());
    }
  }

 private:
  // A fixed permutation of the pages: 7 and kMaxPages have no common divisor.
  static int32_t page_of(int64_t index) { return static_cast<int32_t>(index * 7 % kMaxPages); }

  std::vector<float> step(std::span<const int32_t> ids, const TraceFunction& trace) {
    const auto count = static_cast<int64_t>(ids.size());
    Batch batch;
    batch.token_ids.assign(ids.begin(), ids.end());
    for (size_t axis = 0; axis < 3; ++axis) {
      const auto begin = positions_.axes[axis].begin() + num_tokens_;
      batch.positions[axis].assign(begin, begin + count);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = num_tokens_ + i;
      batch.slots.push_back(static_cast<int32_t>(page_of(token / kKvPageTokens) * kKvPageTokens +
                                                 token % kKvPageTokens));
      batch.output_rows.push_back(static_cast<int32_t>(i));
    }
    batch.query_begin = {0, static_cast<int32_t>(count)};
    batch.context_length = {static_cast<int32_t>(num_tokens_ + count)};
    for (int64_t i = 0; i < kMaxPages; ++i) batch.page_table.push_back(page_of(i));
    batch.max_queries = count;
    batch.max_context = num_tokens_ + count;
    add_pictures(batch);
    const std::vector<float> logits =
        download_floats(*backend_, language_->forward(batch, kv_, *activations_, trace));
    num_tokens_ += count;
    return logits;
  }

  // The part of each picture that lies in the batch.
  void add_pictures(Batch& batch) {
    for (size_t i = 0; i < spans_.size(); ++i) {
      const int64_t begin = std::max(spans_[i].first, num_tokens_);
      const int64_t end =
          std::min(spans_[i].first + visual_[i].num_tokens(), num_tokens_ + batch.num_rows());
      if (begin >= end) continue;
      VisualPiece piece;
      piece.tokens = visual_[i].slice(begin - spans_[i].first, end - begin);
      for (int64_t row = begin; row < end; ++row) {
        piece.rows.push_back(static_cast<int32_t>(row - num_tokens_));
      }
      batch.pictures.push_back(std::move(piece));
    }
  }

  std::unique_ptr<Backend> backend_;
  TestModelOptions options_;
  ModelConfig config_;
  WeightStore store_;
  LanguageWeights language_weights_;
  VisionWeights vision_weights_;
  std::optional<Arena> weights_arena_;
  std::optional<Arena> step_arena_;
  std::optional<Arena> visual_arena_;
  std::optional<LanguageActivations> activations_;
  std::vector<PagedKv> kv_;
  std::optional<LanguageModel> language_;
  std::optional<VisionWeightStream> stream_;
  std::optional<VisionEncoder> vision_;
  std::vector<VisualTokens> visual_;
  std::vector<PatchGrid> grids_;
  std::vector<VisualSpan> spans_;
  SequencePositions positions_;
  int64_t num_tokens_ = 0;
};

}  // namespace glimpse::testing

/// Skips the current test on a machine without this backend.
#define GLIMPSE_REQUIRE_BACKEND(name)                               \
  if (!::glimpse::testing::has_backend(name)) {                     \
    GTEST_SKIP() << "this machine has no " << (name) << " backend"; \
  }
