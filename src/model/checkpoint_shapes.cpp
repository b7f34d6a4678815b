// Qwen3-VL's dense sizes, and a configuration as the files that a checkpoint carries.
#include "model/checkpoint_files.h"
#include "model/synthesize.h"

namespace glimpse {
namespace {

struct NamedShape {
  std::string_view name;
  int64_t hidden_size, num_layers, num_heads, intermediate_size;
  bool is_tied;
  int64_t vision_depth, vision_hidden_size, vision_intermediate_size;
  std::array<int64_t, 3> taps;
};
constexpr NamedShape kShapes[] = {
    {"2b", 2048, 28, 16, 6144, true, 24, 1024, 4096, {5, 11, 17}},
    {"4b", 2560, 36, 32, 9728, true, 24, 1024, 4096, {5, 11, 17}},
    {"8b", 4096, 36, 32, 12288, false, 27, 1152, 4304, {8, 16, 24}},
    {"32b", 5120, 64, 64, 25600, false, 27, 1152, 4304, {8, 16, 24}},
};

TextConfig text_of(const NamedShape& shape) {
  TextConfig text;
  text.vocab_size = 151936;
  text.hidden_size = shape.hidden_size;
  text.intermediate_size = shape.intermediate_size;
  text.num_layers = shape.num_layers;
  text.num_heads = shape.num_heads;
  text.num_kv_heads = 8;
  text.head_dim = 128;
  text.max_position_embeddings = 262144;
  text.rms_norm_eps = 1e-6F;
  text.rope_theta = 5e6;
  text.mrope_section = {24, 20, 20};
  return text;
}

VisionConfig vision_of(const NamedShape& shape) {
  VisionConfig vision;
  vision.depth = shape.vision_depth;
  vision.hidden_size = shape.vision_hidden_size;
  vision.num_heads = 16;
  vision.intermediate_size = shape.vision_intermediate_size;
  vision.out_hidden_size = shape.hidden_size;
  vision.in_channels = 3;
  vision.patch_size = 16;
  vision.temporal_patch_size = 2;
  vision.spatial_merge_size = 2;
  vision.num_position_embeddings = 2304;
  vision.deepstack_visual_indexes.assign(shape.taps.begin(), shape.taps.end());
  return vision;
}

Json text_json(const ModelConfig& config) {
  const TextConfig& text = config.text;
  return {{"model_type", "qwen3_vl_text"},
          {"vocab_size", text.vocab_size},
          {"hidden_size", text.hidden_size},
          {"intermediate_size", text.intermediate_size},
          {"num_hidden_layers", text.num_layers},
          {"num_attention_heads", text.num_heads},
          {"num_key_value_heads", text.num_kv_heads},
          {"head_dim", text.head_dim},
          {"hidden_act", "silu"},
          {"max_position_embeddings", text.max_position_embeddings},
          {"rms_norm_eps", 1e-6},
          {"attention_bias", false},
          {"rope_theta", text.rope_theta},
          {"rope_scaling",
           {{"rope_type", "default"},
            {"mrope_interleaved", true},
            {"mrope_section", text.mrope_section.value()}}},
          {"dtype", "bfloat16"}};
}

Json vision_json(const VisionConfig& vision) {
  return {{"model_type", "qwen3_vl"},
          {"depth", vision.depth},
          {"hidden_size", vision.hidden_size},
          {"num_heads", vision.num_heads},
          {"intermediate_size", vision.intermediate_size},
          {"out_hidden_size", vision.out_hidden_size},
          {"in_channels", vision.in_channels},
          {"patch_size", vision.patch_size},
          {"temporal_patch_size", vision.temporal_patch_size},
          {"spatial_merge_size", vision.spatial_merge_size},
          {"num_position_embeddings", vision.num_position_embeddings},
          {"hidden_act", "gelu_pytorch_tanh"},
          {"deepstack_visual_indexes", vision.deepstack_visual_indexes}};
}

}  // namespace

CheckpointShape named_checkpoint_shape(std::string_view name) {
  for (const NamedShape& shape : kShapes) {
    if (shape.name != name) continue;
    CheckpointShape result;
    result.config.architecture = "Qwen3VLForConditionalGeneration";
    result.config.text = text_of(shape);
    result.config.vision = vision_of(shape);
    result.config.image_token_id = 151655;
    result.config.video_token_id = 151656;
    result.config.vision_start_token_id = 151652;
    result.config.vision_end_token_id = 151653;
    result.config.eos_token_ids = {151645, 151643};
    result.is_tied = shape.is_tied;
    return result;
  }
  throw Error(ErrorCode::invalid_argument, fmt::format("there is no shape '{}'", name),
              "shapes are 2b, 4b, 8b and 32b");
}

Json config_json(const CheckpointShape& shape, RandomCheckpointOptions::Format format) {
  const ModelConfig& config = shape.config;
  Json json = {{"architectures", {config.architecture}},
               {"model_type", "qwen3_vl"},
               {"image_token_id", config.image_token_id},
               {"video_token_id", config.video_token_id},
               {"vision_start_token_id", config.vision_start_token_id},
               {"vision_end_token_id", config.vision_end_token_id},
               {"tie_word_embeddings", shape.is_tied},
               {"text_config", text_json(config)},
               {"vision_config", vision_json(config.vision.value())}};
  if (format == RandomCheckpointOptions::Format::fp8) {
    json["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"activation_scheme", "dynamic"},
                                   {"weight_block_size", {kScaleBlock, kScaleBlock}},
                                   {"modules_to_not_convert", {"lm_head", "model.visual"}}};
  }
  return json;
}

Json generation_config_json(const ModelConfig& config) {
  return {{"do_sample", true}, {"temperature", 0.7},        {"top_p", 0.8},
          {"top_k", 20},       {"repetition_penalty", 1.0}, {"eos_token_id", config.eos_token_ids}};
}

Json preprocessor_config_json(const VisionConfig& vision) {
  const Json halves = {0.5, 0.5, 0.5};
  return {{"image_processor_type", "Qwen2VLImageProcessorFast"},
          {"size", {{"shortest_edge", 65536}, {"longest_edge", 16777216}}},
          {"patch_size", vision.patch_size},
          {"temporal_patch_size", vision.temporal_patch_size},
          {"merge_size", vision.spatial_merge_size},
          {"image_mean", halves},
          {"image_std", halves},
          {"rescale_factor", 1.0 / 255},
          {"resample", 3},
          {"do_convert_rgb", true},
          {"do_resize", true},
          {"do_rescale", true},
          {"do_normalize", true}};
}

}  // namespace glimpse
