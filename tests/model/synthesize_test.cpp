#include "model/synthesize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cpu/cpu_backend.h"
#include "glimpse/synthesize.h"
#include "model/random_tensor.h"
#include "safetensors_file.h"
#include "test_model.h"

namespace glimpse::testing {
namespace {

using Format = RandomCheckpointOptions::Format;
using ::testing::HasSubstr;

CheckpointShape small_shape() {
  CheckpointShape shape = named_checkpoint_shape("8b");
  TextConfig& text = shape.config.text;
  text.vocab_size = 300;
  text.hidden_size = 256;
  text.intermediate_size = 384;
  text.num_layers = 5;
  text.num_heads = 4;
  text.num_kv_heads = 2;
  VisionConfig& vision = *shape.config.vision;
  vision.depth = 4;
  vision.hidden_size = 144;
  vision.num_heads = 2;
  vision.intermediate_size = 296;
  vision.out_hidden_size = 256;
  vision.deepstack_visual_indexes = {0, 2};
  shape.config.image_token_id = 290;
  shape.config.video_token_id = 291;
  shape.config.vision_start_token_id = 292;
  shape.config.vision_end_token_id = 293;
  shape.config.eos_token_ids = {294, 295};
  return shape;
}

TEST(RandomTensor, IsTheSameWholeOrInPieces) {
  for (const DType dtype : {DType::bf16, DType::f8_e4m3}) {
    const RandomTensor tensor{"name", dtype, {33, 77}, 0, 1};
    std::vector<std::byte> whole(static_cast<size_t>(tensor.num_bytes()));
    tensor.fill(5, 0, whole);
    std::vector<std::byte> tail(whole.size() - 192);
    tensor.fill(5, 192, tail);
    EXPECT_TRUE(std::equal(tail.begin(), tail.end(), whole.begin() + 192));
    std::vector<std::byte> other(whole.size());
    tensor.fill(6, 0, other);
    EXPECT_NE(other, whole);
  }
}

TEST(RandomTensor, HoldsNoNanAndUsesTheWholeRange) {
  const RandomTensor tensor{"name", DType::f8_e4m3, {1 << 16}};
  std::vector<std::byte> codes(1 << 16);
  tensor.fill(1, 0, codes);
  float largest = 0;
  double sum = 0;
  for (const std::byte code : codes) {
    const float value = to_float(Float8E4M3{static_cast<uint8_t>(code)});
    ASSERT_FALSE(std::isnan(value));
    largest = std::max(largest, value);
    sum += value;
  }
  EXPECT_EQ(largest, 448.0F);
  // The mean of 2^16 uniform draws in +-448 has deviation 448 / sqrt(3) / 256 = 1.01.
  EXPECT_LT(std::abs(sum / (1 << 16)), 5 * 1.01);
}

TEST(WriteRandomCheckpoint, GivesAModelThatRunsWithActivationsOfOrderOne) {
  for (const Format format : {Format::bf16, Format::fp8}) {
    const TemporaryDirectory directory;
    write_random_checkpoint(small_shape(), directory.path(),
                            {.format = format, .seed = 3, .max_shard_bytes = 400000});
    EXPECT_TRUE(std::filesystem::exists(directory.path() / "model.safetensors.index.json"));
    TestModel model(create_cpu_backend(2), directory.path());
    EXPECT_EQ(model.config().text.num_layers, 5);
    EXPECT_EQ(GenerationConfig::from_directory(directory.path(), model.config()).eos_token_ids,
              (std::vector<int32_t>{294, 295}));
    EXPECT_EQ(ImageProcessorConfig::from_directory(directory.path()).max_pixels, 16777216);
    TestPicture picture{{1, 4, 6}, std::vector<uint8_t>(24 * 768)};
    for (size_t i = 0; i < picture.pixels.size(); ++i) {
      picture.pixels[i] = static_cast<uint8_t>(127.5F * (1 + std::sin(static_cast<float>(i))));
    }
    model.encode({picture});
    float largest = 0;
    const TraceFunction trace = [&](std::string_view, int64_t, const Tensor& value) {
      for (const float x : download_floats(model.backend(), value)) {
        largest = std::isnan(x) ? INFINITY : std::max(largest, std::abs(x));
      }
    };
    const std::vector<float> logits =
        model.prefill({1, 292, 290, 290, 290, 290, 290, 290, 293, 7, 8}, trace);
    EXPECT_LT(largest, 20);
    EXPECT_GT(largest, 0.5);
    EXPECT_NE(logits[0], logits[1]);
  }
}

TEST(NamedShapes, HaveQwensNumberOfTensorsAndParameters) {
  // Parameters in millions, counted from the shapes of the released checkpoints.
  struct Size {
    std::string name;
    double billions;
  };
  for (const Size& size : {Size{"2b", 2.13}, {"4b", 4.44}, {"8b", 8.77}, {"32b", 33.4}}) {
    const CheckpointShape shape = named_checkpoint_shape(size.name);
    const TextConfig& text = shape.config.text;
    const double layer = static_cast<double>(text.hidden_size) *
                         static_cast<double>(text.qkv_size() + text.num_heads * text.head_dim +
                                             3 * text.intermediate_size);
    const double total =
        layer * static_cast<double>(text.num_layers) +
        static_cast<double>(text.vocab_size * text.hidden_size) * (shape.is_tied ? 1 : 2) +
        (size.name == "2b" || size.name == "4b" ? 0.41e9 : 0.58e9);
    EXPECT_NEAR(total / 1e9, size.billions, 0.03 * size.billions) << size.name;
  }
}

TEST(SynthesizeCheckpoint, RefusesWhatItCannotDo) {
  const TemporaryDirectory directory;
  const auto error_of = [&](SynthesizeOptions options) {
    options.directory = directory.path();
    try {
      synthesize_checkpoint(options);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(error_of({.shape = "3b"}), HasSubstr("no shape '3b'"));
  EXPECT_THAT(error_of({.format = "int4"}), HasSubstr("no format 'int4'"));
  EXPECT_THAT(error_of({.tokenizer = "/nowhere/tokenizer.json"}), HasSubstr("no tokenizer file"));
  std::ofstream(directory.path() / "config.json") << "{}";
  EXPECT_THAT(error_of({}), HasSubstr("already holds config.json"));
}

}  // namespace
}  // namespace glimpse::testing
