#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "model/model_directory.h"
#include "paths.h"
#include "safetensors_file.h"

namespace glimpse::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Json demo_json() {
  return read_json_file(demo_model_dir() / "config.json");
}

/// "code: message" of the error that reading gives.
template <typename Read>
std::string error_of(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    return std::string(error.code() == ErrorCode::unsupported ? "unsupported: "
                       : error.code() == ErrorCode::bad_model ? "bad_model: "
                       : error.code() == ErrorCode::not_found ? "not_found: "
                                                              : "other: ") +
           error.what();
  }
  return "no error";
}
std::string error_of(const Json& json) {
  return error_of([&] { static_cast<void>(ModelConfig::from_json(json)); });
}

TEST(ModelConfig, ReadsTheLayoutOfTransformers5) {
  const ModelConfig config = ModelConfig::from_directory(demo_model_dir());
  EXPECT_EQ(config.architecture, "Qwen3VLForConditionalGeneration");
  EXPECT_EQ(config.text.hidden_size, 384);
  EXPECT_EQ(config.text.num_layers, 6);
  EXPECT_EQ(config.text.head_dim, 128);
  EXPECT_EQ(config.text.qkv_size(), 8 * 128);
  EXPECT_EQ(config.text.rope_theta, 5e6);
  EXPECT_EQ(config.text.mrope_section, (std::array<int64_t, 3>{24, 20, 20}));
  ASSERT_TRUE(config.vision.has_value());
  EXPECT_THAT(config.vision->deepstack_visual_indexes, ElementsAre(1, 3, 5));
  EXPECT_EQ(config.vision->patch_features(), 1536);
  EXPECT_EQ(config.image_token_id, 4082);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(4072));
}

TEST(ModelConfig, ReadsTheLayoutOfTransformers4) {
  const ModelConfig config = ModelConfig::from_directory(unpacked_golden_dir() / "tiny-8b-like");
  EXPECT_EQ(config.text.rope_theta, 5e6);
  EXPECT_EQ(config.text.mrope_section, (std::array<int64_t, 3>{24, 20, 20}));
  EXPECT_EQ(config.vision->head_dim(), 72);
  EXPECT_EQ(config.vision->rope_theta, 10000);
}

TEST(ModelConfig, ReadsATextOnlyDecoder) {
  Json json = demo_json().at("text_config");
  json["architectures"] = {"Qwen3ForCausalLM"};
  json["eos_token_id"] = {5, 6};
  json.erase("rope_parameters");
  json["rope_theta"] = 1000000;
  json["rope_scaling"] = nullptr;
  const ModelConfig config = ModelConfig::from_json(json);
  EXPECT_FALSE(config.vision.has_value());
  EXPECT_EQ(config.image_token_id, -1);
  EXPECT_FALSE(config.text.mrope_section.has_value());
  EXPECT_EQ(config.text.rope_theta, 1e6);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(5, 6));
}

TEST(ModelConfig, NamesEveryRequiredKeyThatIsMissing) {
  for (const std::string part : {"text_config", "vision_config"}) {
    std::vector<std::string> keys = {"hidden_size", "intermediate_size", "hidden_act"};
    if (part == "text_config") {
      for (const char* key :
           {"vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "rms_norm_eps", "max_position_embeddings"}) {
        keys.emplace_back(key);
      }
    } else {
      for (const char* key :
           {"depth", "num_heads", "out_hidden_size", "patch_size", "temporal_patch_size",
            "spatial_merge_size", "num_position_embeddings", "deepstack_visual_indexes"}) {
        keys.emplace_back(key);
      }
    }
    for (const std::string& key : keys) {
      Json json = demo_json();
      json[part].erase(key);
      EXPECT_THAT(error_of(json),
                  AllOf(HasSubstr("bad_model: "), HasSubstr(part), HasSubstr("'" + key + "'")));
    }
  }
  for (const std::string key :
       {"architectures", "text_config", "vision_config", "image_token_id"}) {
    Json json = demo_json();
    json.erase(key);
    EXPECT_THAT(error_of(json), HasSubstr("bad_model: config.json lacks the key '" + key + "'"));
  }
  Json json = demo_json();
  json["text_config"].erase("rope_parameters");
  EXPECT_THAT(error_of(json), HasSubstr("lacks the key 'rope_theta'"));
  json["text_config"]["rope_theta"] = 5e6;
  EXPECT_THAT(error_of(json), HasSubstr("rope_scaling are both missing"));
}

TEST(ModelConfig, RefusesNumbersOutOfRange) {
  struct Bad {
    std::string part, key;
    Json value;
  };
  const Bad cases[] = {
      {"text_config", "hidden_size", -1},
      {"text_config", "hidden_size", 4.5},
      {"text_config", "hidden_size", "384"},
      {"text_config", "hidden_size", 18446744073709551615ULL},
      {"text_config", "vocab_size", 1000000000000},
      {"text_config", "num_hidden_layers", 0},
      {"text_config", "num_key_value_heads", 3},
      {"text_config", "head_dim", 127},
      {"text_config", "rms_norm_eps", 7},
      {"vision_config", "num_heads", 7},
      {"vision_config", "out_hidden_size", 385},
      {"vision_config", "num_position_embeddings", 2303},
      {"vision_config", "deepstack_visual_indexes", {1, 8}},
      {"vision_config", "deepstack_visual_indexes", {3, 1}},
      {"vision_config", "deepstack_visual_indexes", {0, 1, 2, 3, 4, 5, 6}},
  };
  for (const Bad& bad : cases) {
    Json json = demo_json();
    json[bad.part][bad.key] = bad.value;
    EXPECT_THAT(error_of(json),
                AllOf(HasSubstr("bad_model: "), HasSubstr(bad.part), HasSubstr(bad.key)))
        << bad.value;
  }
  Json json = demo_json();
  json["image_token_id"] = 4096;
  EXPECT_THAT(error_of(json), HasSubstr("image_token_id is 4096, it must be 0 to 4095"));
}

TEST(ModelConfig, NamesWhatIsNotSupported) {
  Json json = demo_json();
  json["architectures"] = {"LlavaForConditionalGeneration"};
  EXPECT_THAT(error_of(json), HasSubstr("unsupported: the architecture LlavaForConditional"));
  json = demo_json();
  json["text_config"]["rope_parameters"]["rope_type"] = "yarn";
  EXPECT_THAT(error_of(json), HasSubstr("unsupported: the rotary scaling 'yarn'"));
  json = demo_json();
  json["quantization_config"]["quant_method"] = "awq";
  EXPECT_THAT(error_of(json), HasSubstr("unsupported: the quantisation method awq"));
  json = demo_json();
  json["quantization_config"]["weight_block_size"] = {64, 64};
  EXPECT_THAT(error_of(json), HasSubstr("weight_block_size is not [128, 128]"));
  json = demo_json();
  json["vision_config"]["hidden_act"] = "quick_gelu";
  EXPECT_THAT(error_of(json), HasSubstr("hidden_act is quick_gelu, only gelu_pytorch_tanh"));
}

TEST(GenerationConfig, ReadsBothFormsOfTheEndOfText) {
  const Json list = {
      {"do_sample", true}, {"temperature", 0.7},        {"top_p", 0.8},
      {"top_k", 20},       {"repetition_penalty", 1.0}, {"eos_token_id", {151645, 151643}}};
  const GenerationConfig config = GenerationConfig::from_json(list);
  EXPECT_TRUE(config.do_sample);
  EXPECT_FLOAT_EQ(config.temperature, 0.7F);
  EXPECT_EQ(config.top_k, 20);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(151645, 151643));
  EXPECT_THAT(GenerationConfig::from_json({{"eos_token_id", 7}}).eos_token_ids, ElementsAre(7));
  EXPECT_TRUE(GenerationConfig::from_json(Json::object()).eos_token_ids.empty());
  EXPECT_THROW(GenerationConfig::from_json({{"temperature", -1}}), Error);
}

TEST(GenerationConfig, FallsBackToTheModelsEndOfTextWithoutTheFile) {
  const std::filesystem::path directory = unpacked_golden_dir() / "tiny-fp8";
  const ModelConfig model = ModelConfig::from_directory(directory);
  EXPECT_THAT(GenerationConfig::from_directory(directory, model).eos_token_ids, ElementsAre(504));
}

/// Sets an environment variable for a test.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const std::string& value) : name_(name) {
    const char* before = std::getenv(name);
    if (before != nullptr) before_ = before;
    ::setenv(name, value.c_str(), 1);
  }
  ~ScopedVariable() {
    if (before_) {
      ::setenv(name_, before_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

void touch(const std::filesystem::path& path, const std::string& text = "{}") {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

TEST(ModelDirectory, IsFoundInTheHuggingFaceCache) {
  const TemporaryDirectory home;
  const std::filesystem::path repository = home.path() / "hub" / "models--Qwen--Some-Model";
  for (const std::string revision : {"old", "new"}) {
    touch(repository / "snapshots" / revision / "config.json");
    touch(repository / "snapshots" / revision / "model.safetensors");
  }
  const ScopedVariable no_cache("HF_HUB_CACHE", "");
  const ScopedVariable hf_home("HF_HOME", home.path().string());
  touch(repository / "refs" / "main", "old\n");
  EXPECT_EQ(resolve_model_directory("Qwen/Some-Model"), repository / "snapshots" / "old");
  std::filesystem::remove_all(repository / "refs");
  std::filesystem::last_write_time(
      repository / "snapshots" / "old",
      std::filesystem::last_write_time(repository / "snapshots" / "new") - std::chrono::hours(1));
  EXPECT_EQ(resolve_model_directory("Qwen/Some-Model"), repository / "snapshots" / "new");
  EXPECT_THAT(error_of([] { static_cast<void>(resolve_model_directory("Qwen/Other")); }),
              AllOf(HasSubstr("not_found: there is no model 'Qwen/Other'"),
                    HasSubstr((home.path() / "hub" / "models--Qwen--Other").string())));
}

TEST(ModelDirectory, WithoutACheckpointNamesWhatIsMissing) {
  const TemporaryDirectory directory;
  const auto resolve = [&] {
    static_cast<void>(resolve_model_directory(directory.path().string()));
  };
  EXPECT_THAT(error_of(resolve), HasSubstr("holds no checkpoint: config.json is missing"));
  touch(directory.path() / "config.json");
  EXPECT_THAT(error_of(resolve), HasSubstr("model.safetensors"));
  touch(directory.path() / "model.safetensors");
  EXPECT_EQ(error_of(resolve), "no error");
}

}  // namespace
}  // namespace glimpse::testing
