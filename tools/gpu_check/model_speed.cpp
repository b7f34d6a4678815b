// Times the model alone on the GPU, without the engine: loading, a 1024x768 picture, prefill,
// decode with greedy sampling on the device. One JSON object on standard output.
//   model_speed CHECKPOINT [SHAPE FORMAT]   writes a random checkpoint first where there is none
#include <algorithm>
#include <chrono>
#include <numeric>

#include <fmt/format.h>

#include "backend/backend.h"
#include "base/json.h"
#include "glimpse/synthesize.h"
#include "model/language_model.h"
#include "model/vision_encoder.h"
#include "model/weight_store.h"

namespace glimpse {
namespace {

constexpr int64_t kContext = 4096;
constexpr int64_t kMaxSequences = 8;
constexpr int64_t kMaxPages = kContext / kKvPageTokens;
constexpr int64_t kMaxRows = 2048;
constexpr PatchGrid kPicture = {.t = 1, .h = 48, .w = 64};  // 1024 x 768
constexpr StepLimits kLimits = {kMaxRows, kMaxSequences, kMaxPages, kMaxSequences};

double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <typename Run>
double median_ms(int runs, const Run& run) {
  run();
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const double begin = now_ms();
    run();
    times.push_back(now_ms() - begin);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <typename Lay>
Arena measured_arena(Backend& backend, const std::string& name, const Lay& lay) {
  Arena measuring = Arena::measuring(backend.device());
  lay(measuring);
  return Arena(backend.allocate(measuring.peak_bytes(), name), name);
}

class Model {
 public:
  Model(Backend& backend, const std::filesystem::path& directory)
      : backend_(backend),
        config_(ModelConfig::from_directory(directory)),
        store_(directory),
        weights_arena_(measured_arena(backend, "weights", [&](Arena& arena) { bind(arena); })) {
    bind(weights_arena_);
    backend_.synchronize();
    const auto lay = [&](Arena& arena) { lay_out(arena); };
    arena_.emplace(measured_arena(backend, "activations and KV", [&](Arena& arena) {
      lay(arena);
      static_cast<void>(StepBuffers::carve(config_.text, Arithmetic::fast, kLimits, arena));
      static_cast<void>(VisionActivations::carve(*config_.vision, Arithmetic::fast,
                                                 kPicture.num_patches(), arena));
    }));
    lay(*arena_);
    language_.emplace(backend_, config_.text, language_weights_, Arithmetic::fast, kLimits,
                      *arena_);
    vision_.emplace(backend_, *config_.vision, ImageProcessorConfig{}, vision_weights_,
                    Arithmetic::fast, kPicture.num_patches(), *arena_);
  }

  double vision_ms() {
    const int64_t side = config_.vision->patch_size;
    std::vector<uint8_t> pixels(static_cast<size_t>(kPicture.num_patches() * side * side * 3));
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i % 251);
    return median_ms(7, [&] {
      const VisionPicture picture{kPicture, pixels, visual_};
      vision_->begin({&picture, 1});
      while (!vision_->advance(1000)) {
      }
      backend_.synchronize();
    });
  }

  double prefill_ms(int64_t rows) {
    Batch batch = make_batch(1, rows, rows);
    return median_ms(7, [&] {
      (void)language_->forward(batch, kv_, activations_);
      backend_.synchronize();
    });
  }

  /// Milliseconds a step of `sequences` tokens, after a prompt of `prompt` tokens each.
  double decode_ms(int64_t sequences, int64_t prompt, int64_t steps) {
    std::vector<int32_t> next(static_cast<size_t>(sequences), 1);
    const SamplingRows rows = greedy(sequences);
    const Tensor ids = ids_.slice(0, 0, sequences);
    const auto decode = [&](int64_t context) {
      Batch batch = make_batch(sequences, 1, context);
      batch.max_context = kContext;
      std::copy(next.begin(), next.end(), batch.token_ids.begin());
      const Tensor logits = language_->replay(batch, kv_, activations_);
      backend_.sample(logits, rows, ids, log_probs_.slice(0, 0, sequences));
      backend_.download(ids, std::as_writable_bytes(std::span(next)));
    };
    for (int64_t i = 0; i < 8; ++i) decode(prompt + i);
    const double begin = now_ms();
    for (int64_t i = 0; i < steps; ++i) decode(prompt + i);
    return (now_ms() - begin) / static_cast<double>(steps);
  }

 private:
  void bind(Arena& arena) {
    language_weights_ = bind_language_weights(store_, config_.text, backend_, arena);
    vision_weights_ = bind_vision_weights(store_, *config_.vision, backend_, arena);
  }

  void lay_out(Arena& arena) {
    const TextConfig& text = config_.text;
    activations_ = LanguageActivations::carve(text, Arithmetic::fast, kMaxRows, arena);
    kv_.clear();
    for (int64_t i = 0; i < text.num_layers; ++i) {
      const auto pages = [&] {
        return arena.allocate(DType::bf16, {kMaxSequences * kMaxPages, text.num_kv_heads,
                                            kKvPageTokens, text.head_dim});
      };
      const Tensor keys = pages();
      kv_.push_back({keys, pages(), {}, {}});
    }
    visual_ = carve_visual_tokens(*config_.vision, Arithmetic::fast,
                                  kPicture.num_patches() / config_.vision->merge_area(), arena);
    floats_ = arena.allocate(DType::f32, {3, kMaxSequences});
    ints_ = arena.allocate(DType::i32, {2, kMaxSequences});
    ids_ = arena.allocate(DType::i32, {kMaxSequences});
    log_probs_ = arena.allocate(DType::f32, {kMaxSequences});
  }

  /// `rows` new tokens of each sequence, at the end of `context` tokens.
  Batch make_batch(int64_t sequences, int64_t rows, int64_t context) {
    Batch batch;
    for (int64_t s = 0; s < sequences; ++s) {
      batch.query_begin.push_back(static_cast<int32_t>(s * rows));
      batch.context_length.push_back(static_cast<int32_t>(context));
      for (int64_t i = 0; i < rows; ++i) {
        const auto position = static_cast<int32_t>(context - rows + i);
        batch.token_ids.push_back(static_cast<int32_t>((i * 131 + s) % 1000));
        for (auto& axis : batch.positions) axis.push_back(position);
        batch.slots.push_back(static_cast<int32_t>(s * kContext) + position);
      }
      for (int64_t page = 0; page < kMaxPages; ++page) {
        batch.page_table.push_back(static_cast<int32_t>(s * kMaxPages + page));
      }
      batch.output_rows.push_back(static_cast<int32_t>((s + 1) * rows - 1));
    }
    batch.query_begin.push_back(static_cast<int32_t>(sequences * rows));
    batch.max_queries = rows;
    batch.max_context = context;
    return batch;
  }

  SamplingRows greedy(int64_t rows) {
    const std::vector<float> zeros_and_ones = [] {
      std::vector<float> values(3 * kMaxSequences, 0.0F);
      std::fill(values.begin() + kMaxSequences, values.begin() + 2 * kMaxSequences, 1.0F);
      return values;
    }();
    std::vector<int32_t> none(2 * kMaxSequences, -1);
    std::fill(none.begin(), none.begin() + kMaxSequences, 0);
    backend_.upload(std::as_bytes(std::span(zeros_and_ones)), floats_);
    backend_.upload(std::as_bytes(std::span(none)), ints_);
    const auto line = [&](const Tensor& lines, int64_t i) {
      return lines.slice(0, i, 1).view({kMaxSequences}).slice(0, 0, rows);
    };
    const Tensor zero = line(floats_, 0);
    const Tensor one = line(floats_, 1);
    return {.temperature = zero,
            .top_k = line(ints_, 0),
            .top_p = one,
            .min_p = zero,
            .uniform = zero,
            .repetition_penalty = one,
            .presence_penalty = zero,
            .frequency_penalty = zero,
            .counts_row = line(ints_, 1),
            .token_counts = {},
            .mask_row = line(ints_, 1),
            .allowed = {}};
  }

  Backend& backend_;
  ModelConfig config_;
  WeightStore store_;
  LanguageWeights language_weights_;
  VisionWeights vision_weights_;
  Arena weights_arena_;
  std::optional<Arena> arena_;
  LanguageActivations activations_;
  std::vector<PagedKv> kv_;
  VisualTokens visual_;
  Tensor floats_, ints_, ids_, log_probs_;
  std::optional<LanguageModel> language_;
  std::optional<VisionEncoder> vision_;
};

int run(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: model_speed CHECKPOINT [SHAPE FORMAT]\n");
    return 1;
  }
  const std::filesystem::path directory = argv[1];
  if (argc > 3 && !std::filesystem::exists(directory / "config.json")) {
    synthesize_checkpoint({.shape = argv[2], .format = argv[3], .directory = directory});
  }
  const auto backend = create_backend({.choice = BackendOptions::Choice::cuda});
  const double begin = now_ms();
  Model model(*backend, directory);
  Json report = {{"checkpoint", directory.filename().string()},
                 {"device", backend->description()},
                 {"load_ms", now_ms() - begin}};
  report["vision_1024x768_ms"] = model.vision_ms();
  for (const int64_t rows : {782, 2048}) {
    const double ms = model.prefill_ms(rows);
    report[fmt::format("prefill_{}_ms", rows)] = ms;
    report[fmt::format("prefill_{}_tokens_per_s", rows)] = static_cast<double>(rows) * 1e3 / ms;
  }
  for (const int64_t sequences : {1, 8}) {
    const double ms = model.decode_ms(sequences, 782, 128);
    report[fmt::format("decode_batch_{}_ms", sequences)] = ms;
    report[fmt::format("decode_batch_{}_tokens_per_s", sequences)] =
        static_cast<double>(sequences) * 1e3 / ms;
  }
  fmt::print("{}\n", report.dump());
  return 0;
}

}  // namespace
}  // namespace glimpse

int main(int argc, char** argv) {
  try {
    return glimpse::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "model_speed: {}\n", error.what());
    return 1;
  }
}
