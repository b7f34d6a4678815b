// Everything that is read from a checkpoint before the first request: configs, tokenizer, template,
// and the weights bound to a backend.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "glimpse/engine.h"
#include "image/image_processor.h"
#include "model/config.h"
#include "model/weight_store.h"
#include "model/weights.h"
#include "runtime/memory_planner.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace glimpse {

/// The parts of a checkpoint that are read without its weights. Immutable; thread-safe.
struct ModelFiles {
  std::filesystem::path directory;
  std::string name;
  ModelConfig config;
  GenerationConfig generation;
  ImageProcessorConfig pictures;

  /// Throws Error(not_found), Error(bad_model) or Error(unsupported).
  [[nodiscard]] static ModelFiles open(const EngineOptions& options);
};

/// Tokenizer and template; both absent in checkpoints without tokenizer.json.
struct ModelText {
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;

  [[nodiscard]] static ModelText open(const std::filesystem::path& directory);
};

/// Owns a model that is ready to run. The order of members is the order in which they depend on
/// each other.
class LoadedModel {
 public:
  /// Loads as `options` say; progress and notices go to their callbacks.
  explicit LoadedModel(const EngineOptions& options);

  ModelFiles files;
  ModelText text;
  std::unique_ptr<Backend> backend;
  WeightStore store;
  WeightFacts weight_facts;
  MemoryPlan plan;
  LanguageWeights language;
  std::optional<VisionWeights> vision;

  [[nodiscard]] bool has_vision() const { return files.config.vision.has_value(); }
  /// Facts for the user; load_milliseconds is the caller's.
  [[nodiscard]] ModelInfo info() const;

 private:
  void bind_weights(const EngineOptions& options);

  std::optional<Arena> text_arena_;
  std::optional<Arena> vision_arena_;
};

}  // namespace glimpse
