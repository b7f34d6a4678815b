#include "runtime/loaded_model.h"

#include <future>
#include <utility>

#include "model/model_directory.h"
#include "runtime/weight_facts.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;

void notify(const EngineOptions& options, const std::string& sentence) {
  if (options.on_notice) options.on_notice(sentence);
}

std::unique_ptr<Backend> open_backend(const EngineOptions& options) {
  BackendOptions backend;
  backend.cuda_device = options.cuda_device;
  backend.num_threads = options.threads;
  using Choice = BackendOptions::Choice;
  switch (options.device) {
    case DeviceChoice::automatic:
      backend.choice = Choice::automatic;
      break;
    case DeviceChoice::cpu:
      backend.choice = Choice::cpu;
      break;
    case DeviceChoice::cuda:
      backend.choice = Choice::cuda;
      break;
  }
  return create_backend(backend);
}

}  // namespace

ModelFiles ModelFiles::open(const EngineOptions& options) {
  ModelFiles files;
  files.directory =
      options.model.empty() ? bundled_model_directory() : resolve_model_directory(options.model);
  // A repo id names itself; its snapshot directory is a hash.
  const bool is_repo_id = !options.model.empty() && !fs::exists(options.model);
  const fs::path whole = fs::absolute(files.directory).lexically_normal();
  files.name = is_repo_id             ? options.model
               : whole.has_filename() ? whole.filename().string()
                                      : whole.parent_path().filename().string();
  files.config = ModelConfig::from_directory(files.directory);
  files.generation = GenerationConfig::from_directory(files.directory, files.config);
  if (files.config.vision) {
    files.pictures = ImageProcessorConfig::from_directory(files.directory);
    const VisionConfig& vision = *files.config.vision;
    if (files.pictures.patch_size != vision.patch_size ||
        files.pictures.merge_size != vision.spatial_merge_size ||
        files.pictures.temporal_patch_size != vision.temporal_patch_size) {
      throw Error(ErrorCode::bad_model,
                  "the picture processor's patch sizes differ from the vision tower's",
                  "the files of this checkpoint do not belong together: download it again");
    }
  }
  return files;
}

ModelText ModelText::open(const fs::path& directory) {
  ModelText text;
  const fs::path tokenizer = directory / "tokenizer.json";
  if (!fs::exists(tokenizer)) return text;
  text.tokenizer.emplace(tokenizer);
  text.chat_template.emplace(ChatTemplate::from_directory(directory));
  return text;
}

// The tokenizer is read on a thread of its own while the weights are bound: each takes about as
// long as the other.
LoadedModel::LoadedModel(const EngineOptions& options)
    : files(ModelFiles::open(options)), store(files.directory) {
  std::future<ModelText> text_future =
      std::async(std::launch::async, [this] { return ModelText::open(files.directory); });
  require_fp8_weights(store, options);
  backend = open_backend(options);
  for (const std::string& warning : backend->warnings()) notify(options, warning);
  weight_facts = measure_weights(store, files.config, *backend, options.quantize_to_fp8);
  plan = plan_memory(
      {files.config, files.pictures, weight_facts, plan_target(*backend, options.cuda_device)},
      options);
  for (const std::string& notice : plan.notices) notify(options, notice);
  bind_weights(options);
  text = text_future.get();
  if (!text.tokenizer) {
    notify(options, "this checkpoint has no tokenizer.json: only token ids can be asked");
  } else if (text.tokenizer->vocabulary_size() > files.config.text.vocab_size) {
    throw Error(ErrorCode::bad_model,
                fmt::format("the tokenizer has {} tokens, the model {}",
                            text.tokenizer->vocabulary_size(), files.config.text.vocab_size),
                "the files of this checkpoint do not belong together: download it again");
  }
}

void LoadedModel::bind_weights(const EngineOptions& options) {
  const int64_t total = store.num_bytes();
  int64_t language_bytes = 0;
  int64_t done = 0;
  BindOptions bind{.quantize_to_fp8 = options.quantize_to_fp8};
  if (options.on_progress) {
    bind.on_progress = [&](int64_t bytes) {
      done = language_bytes + bytes;
      options.on_progress({"reading weights", std::min(done, total), total});
    };
  }
  const auto arena_of = [&](std::string_view item, int64_t bytes) {
    return Arena(backend->allocate(bytes, item), std::string(item));
  };
  text_arena_ = arena_of(kTextWeightsItem,
                         plan.bytes_of_item(kEmbeddingItem) + plan.bytes_of_item(kTextWeightsItem));
  language = bind_language_weights(store, files.config.text, *backend, *text_arena_, bind);
  language_bytes = done;
  if (has_vision()) {
    bind.streams_vision = plan.shape.streams_vision;
    vision_arena_ = arena_of(kVisionWeightsItem, plan.bytes_of_item(kVisionWeightsItem));
    vision = bind_vision_weights(store, *files.config.vision, *backend, *vision_arena_, bind);
  }
  backend->synchronize();
}

ModelInfo LoadedModel::info() const {
  const EngineShape& shape = plan.shape;
  ModelInfo info;
  info.name = files.name;
  info.directory = files.directory.string();
  info.architecture = files.config.architecture;
  info.device = backend->description();
  info.arithmetic = shape.arithmetic == Arithmetic::exact  ? "exact"
                    : shape.arithmetic == Arithmetic::w8a8 ? "w8a8"
                                                           : "fast";
  info.weight_format = store.weight_format();
  info.num_parameters = store.num_parameters();
  info.context = shape.context;
  info.max_sequences = shape.max_sequences;
  info.min_pixels = shape.min_pixels;
  info.max_pixels = shape.max_pixels;
  info.vocabulary_size = files.config.text.vocab_size;
  info.image_token_id = has_vision() ? files.config.image_token_id : -1;
  info.has_tokenizer = text.tokenizer.has_value();
  return info;
}

}  // namespace glimpse
