#include "model/config.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "model/config_reader.h"

namespace glimpse {
namespace {

// Bounds of single numbers, far above any model of the family and low enough that no product of
// four of them overflows int64.
constexpr int64_t kMaxWidth = 1 << 17;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxVocabulary = 1 << 22;
constexpr int64_t kMaxPositions = 1 << 24;
constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();

constexpr std::string_view kVisionLanguage = "Qwen3VLForConditionalGeneration";
constexpr std::string_view kTextOnly = "Qwen3ForCausalLM";

[[noreturn]] void unsupported(const std::string& message, std::string hint = {}) {
  throw Error(ErrorCode::unsupported, message, std::move(hint));
}

std::string read_architecture(const ConfigReader& root) {
  const Json& list = root.at("architectures");
  if (!list.is_array() || list.empty() || !list.front().is_string()) {
    ConfigReader::fail(root.path_of("architectures") + " is not a list of names");
  }
  const auto name = list.front().get<std::string>();
  if (name != kVisionLanguage && name != kTextOnly) {
    unsupported(fmt::format("the architecture {} is not supported", name),
                fmt::format("Glimpse runs {} and {}", kVisionLanguage, kTextOnly));
  }
  return name;
}

void check_quantization(const ConfigReader& root) {
  const auto quantization = root.find_object("quantization_config");
  if (!quantization) return;
  const std::string method = quantization->string("quant_method");
  if (method != "fp8") {
    unsupported(fmt::format("the quantisation method {} is not supported", method),
                "use the BF16 checkpoint, or one in block-scaled FP8");
  }
  const std::vector<int64_t> block = quantization->integers("weight_block_size", 1, kMaxWidth, 2);
  if (block != std::vector<int64_t>{kScaleBlock, kScaleBlock}) {
    unsupported(fmt::format("{} is not [{}, {}]", quantization->path_of("weight_block_size"),
                            kScaleBlock, kScaleBlock),
                "use an FP8 checkpoint with scales for blocks of 128 x 128");
  }
}

void require_activation(const ConfigReader& reader, std::string_view expected) {
  const std::string found = reader.string("hidden_act");
  if (found != expected) {
    unsupported(fmt::format("{} is {}, only {} is supported", reader.path_of("hidden_act"), found,
                            expected));
  }
}

void check_rope_type(const ConfigReader& rope) {
  const std::string kind = rope.string_or("rope_type", rope.string_or("type", "default"));
  if (kind != "default" && kind != "mrope") {
    unsupported(fmt::format("the rotary scaling '{}' is not supported", kind),
                "remove rope_scaling from config.json to run without it, up to the context the "
                "model was trained for");
  }
}

std::array<int64_t, 3> read_sections(const ConfigReader& rope, int64_t head_dim) {
  if (!rope.boolean_or("mrope_interleaved", true)) {
    unsupported(rope.path_of("mrope_interleaved") + " is false, only interleaved is supported");
  }
  const std::vector<int64_t> sections = rope.integers("mrope_section", 0, kMaxWidth, 3);
  if (sections.size() != 3 || sections[0] + sections[1] + sections[2] != head_dim / 2) {
    ConfigReader::fail(fmt::format("{} must be three numbers that add up to {}",
                                   rope.path_of("mrope_section"), head_dim / 2));
  }
  return {sections[0], sections[1], sections[2]};
}

// transformers 5 keeps everything in rope_parameters; 4 has rope_theta beside rope_scaling.
void read_rope(const ConfigReader& reader, bool is_multimodal, TextConfig& text) {
  auto rope = reader.find_object("rope_parameters");
  const bool is_version_5 = rope.has_value();
  if (!rope) rope = reader.find_object("rope_scaling");
  text.rope_theta = (is_version_5 ? *rope : reader).number("rope_theta", 1, 1e12);
  if (rope) check_rope_type(*rope);
  if (!is_multimodal) return;
  if (!rope) {
    ConfigReader::fail(
        fmt::format("{} and rope_scaling are both missing", reader.path_of("rope_parameters")));
  }
  text.mrope_section = read_sections(*rope, text.head_dim);
}

TextConfig read_text(const ConfigReader& reader, bool is_multimodal) {
  require_activation(reader, "silu");
  if (reader.boolean_or("attention_bias", false)) {
    unsupported(reader.path_of("attention_bias") + " is true, only false is supported");
  }
  if (reader.boolean_or("use_sliding_window", false)) {
    unsupported(reader.path_of("use_sliding_window") + " is true, only false is supported");
  }
  TextConfig text;
  text.vocab_size = reader.integer("vocab_size", 1, kMaxVocabulary);
  text.hidden_size = reader.integer("hidden_size", 1, kMaxWidth);
  text.intermediate_size = reader.integer("intermediate_size", 1, kMaxWidth);
  text.num_layers = reader.integer("num_hidden_layers", 1, kMaxLayers);
  text.num_heads = reader.integer("num_attention_heads", 1, kMaxHeads);
  text.num_kv_heads = reader.integer("num_key_value_heads", 1, text.num_heads);
  if (text.num_heads % text.num_kv_heads != 0) {
    ConfigReader::fail(fmt::format("{} is {}, which does not divide the {} query heads",
                                   reader.path_of("num_key_value_heads"), text.num_kv_heads,
                                   text.num_heads));
  }
  text.head_dim = reader.integer("head_dim", 2, 1024);
  if (text.head_dim % 2 != 0) {
    ConfigReader::fail(fmt::format("{} is odd: {}", reader.path_of("head_dim"), text.head_dim));
  }
  text.max_position_embeddings = reader.integer("max_position_embeddings", 1, kMaxPositions);
  text.rms_norm_eps = static_cast<float>(reader.number("rms_norm_eps", 0, 1));
  read_rope(reader, is_multimodal, text);
  return text;
}

void read_deepstack(const ConfigReader& reader, int64_t num_layers, VisionConfig& vision) {
  // Looked up first: without the key a model with DeepStack would silently lose it.
  static_cast<void>(reader.at("deepstack_visual_indexes"));
  vision.deepstack_visual_indexes =
      reader.integers("deepstack_visual_indexes", 0, vision.depth - 1, kMaxLayers);
  const std::vector<int64_t>& taps = vision.deepstack_visual_indexes;
  const bool is_rising =
      std::adjacent_find(taps.begin(), taps.end(), std::greater_equal<>()) == taps.end();
  if (!is_rising || vision.num_deepstack() > num_layers) {
    ConfigReader::fail(
        fmt::format("{} must rise and have at most as many entries as the decoder "
                    "has layers ({})",
                    reader.path_of("deepstack_visual_indexes"), num_layers));
  }
}

void check_vision(const ConfigReader& reader, const VisionConfig& vision, int64_t text_hidden) {
  const auto require = [&](bool condition, std::string_view key, std::string_view what) {
    if (!condition) ConfigReader::fail(fmt::format("{} {}", reader.path_of(key), what));
  };
  require(vision.hidden_size % vision.num_heads == 0 && vision.head_dim() % 4 == 0, "num_heads",
          "must divide hidden_size into heads of a multiple of 4");
  require(
      vision.out_hidden_size == text_hidden, "out_hidden_size",
      fmt::format("is {}, the decoder's hidden_size is {}", vision.out_hidden_size, text_hidden));
  int64_t side = 0;
  while (side * side < vision.num_position_embeddings) ++side;
  require(side * side == vision.num_position_embeddings, "num_position_embeddings",
          "is not a square number");
}

VisionConfig read_vision(const ConfigReader& reader, const TextConfig& text) {
  require_activation(reader, "gelu_pytorch_tanh");
  VisionConfig vision;
  vision.depth = reader.integer("depth", 1, kMaxLayers);
  vision.hidden_size = reader.integer("hidden_size", 1, kMaxWidth);
  vision.num_heads = reader.integer("num_heads", 1, kMaxHeads);
  vision.intermediate_size = reader.integer("intermediate_size", 1, kMaxWidth);
  vision.out_hidden_size = reader.integer("out_hidden_size", 1, kMaxWidth);
  vision.in_channels = reader.integer_or("in_channels", 3, 3, 3);
  vision.patch_size = reader.integer("patch_size", 1, 256);
  vision.temporal_patch_size = reader.integer("temporal_patch_size", 1, 16);
  vision.spatial_merge_size = reader.integer("spatial_merge_size", 1, 16);
  vision.num_position_embeddings = reader.integer("num_position_embeddings", 1, 1 << 20);
  if (const auto rope = reader.find_object("rope_parameters")) {
    vision.rope_theta = rope->number_or("rope_theta", 1, 1e12, vision.rope_theta);
  }
  read_deepstack(reader, text.num_layers, vision);
  check_vision(reader, vision, text.hidden_size);
  return vision;
}

int32_t read_token_id(const ConfigReader& root, std::string_view key, int64_t vocab_size) {
  return static_cast<int32_t>(root.integer_or(key, 0, vocab_size - 1, -1));
}

std::vector<int32_t> read_token_ids(const ConfigReader& reader, std::string_view key) {
  std::vector<int32_t> ids;
  for (const int64_t id : reader.integers(key, 0, kMaxTokenId, 64)) {
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace

ModelConfig ModelConfig::from_directory(const std::filesystem::path& directory) {
  return from_json(read_json_file(directory / "config.json"));
}

ModelConfig ModelConfig::from_json(const Json& object) {
  const ConfigReader root(object, "config.json");
  ModelConfig config;
  config.architecture = read_architecture(root);
  check_quantization(root);
  const bool is_multimodal = config.architecture == kVisionLanguage;
  const ConfigReader text(is_multimodal ? root.at("text_config") : object,
                          is_multimodal ? root.path_of("text_config") : "config.json");
  config.text = read_text(text, is_multimodal);
  config.eos_token_ids = read_token_ids(text, "eos_token_id");
  if (config.eos_token_ids.empty()) config.eos_token_ids = read_token_ids(root, "eos_token_id");
  if (!is_multimodal) return config;
  config.vision = read_vision(ConfigReader(root.at("vision_config"), root.path_of("vision_config")),
                              config.text);
  const int64_t vocab_size = config.text.vocab_size;
  config.image_token_id = static_cast<int32_t>(root.integer("image_token_id", 0, vocab_size - 1));
  config.video_token_id = read_token_id(root, "video_token_id", vocab_size);
  config.vision_start_token_id = read_token_id(root, "vision_start_token_id", vocab_size);
  config.vision_end_token_id = read_token_id(root, "vision_end_token_id", vocab_size);
  return config;
}

GenerationConfig GenerationConfig::from_directory(const std::filesystem::path& directory,
                                                  const ModelConfig& model) {
  const std::filesystem::path path = directory / "generation_config.json";
  if (std::filesystem::exists(path)) return from_json(read_json_file(path));
  GenerationConfig config;
  config.eos_token_ids = model.eos_token_ids;
  return config;
}

GenerationConfig GenerationConfig::from_json(const Json& object) {
  const ConfigReader root(object, "generation_config.json");
  GenerationConfig config;
  config.do_sample = root.boolean_or("do_sample", config.do_sample);
  config.temperature = static_cast<float>(root.number_or("temperature", 0, 100, 1));
  config.top_p = static_cast<float>(root.number_or("top_p", 0, 1, 1));
  config.top_k = static_cast<int32_t>(root.integer_or("top_k", 0, kMaxVocabulary, config.top_k));
  config.min_p = static_cast<float>(root.number_or("min_p", 0, 1, 0));
  config.repetition_penalty =
      static_cast<float>(root.number_or("repetition_penalty", 1e-3, 100, 1));
  config.eos_token_ids = read_token_ids(root, "eos_token_id");
  return config;
}

}  // namespace glimpse
