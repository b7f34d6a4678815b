// The same weights in other files: other dtypes, other prefixes, a text-only decoder.
#include <gtest/gtest.h>

#include <fstream>

#include "cpu/cpu_backend.h"
#include "golden_stages.h"
#include "paths.h"
#include "safetensors_file.h"
#include "test_model.h"

namespace glimpse::testing {
namespace {

const std::filesystem::path kDirectory = unpacked_golden_dir() / "tiny-8b-like";

template <typename To>
std::vector<std::byte> converted(const StoredTensor& tensor, To (*convert)(float)) {
  const auto* from = reinterpret_cast<const BFloat16*>(tensor.bytes.data());
  std::vector<To> values(static_cast<size_t>(tensor.num_elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = convert(to_float(from[i]));
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

float keep(float x) {
  return x;
}

// The name in fine-tunes of other toolkits.
std::string renamed(const std::string& name) {
  const std::string text = "model.language_model.";
  const std::string vision = "model.visual.";
  if (name.starts_with(text)) return "language_model.model." + name.substr(text.size());
  if (name.starts_with(vision)) return "visual." + name.substr(vision.size());
  return name;
}

// tiny-8b-like, whose tensors are all BF16, in another dtype and under other names.
void write_variant(const std::filesystem::path& directory, DType dtype) {
  const MappedFile file(kDirectory / "model.safetensors");
  std::vector<FileTensor> tensors;
  for (const StoredTensor& tensor : parse_safetensors(file.bytes(), "model.safetensors")) {
    ASSERT_EQ(tensor.dtype, DType::bf16);
    tensors.push_back({renamed(tensor.name), dtype == DType::f32 ? "F32" : "F16", tensor.shape,
                       dtype == DType::f32 ? converted<float>(tensor, keep)
                                           : converted<Float16>(tensor, to_float16)});
  }
  write_safetensors(directory / "model.safetensors", tensors);
  std::filesystem::copy_file(kDirectory / "config.json", directory / "config.json");
}

std::vector<float> logits_of(const std::filesystem::path& directory) {
  const GoldenStages stages(kDirectory / "stages-f32.safetensors");
  TestModel model(create_cpu_backend(2), directory);
  model.encode(stages.pictures(*model.config().vision));
  return model.prefill(stages.integers("input_ids"));
}

TEST(CheckpointVariants, InF32GiveTheSameLogits) {
  const TemporaryDirectory directory;
  write_variant(directory.path(), DType::f32);
  // BF16 is exact in F32; kernels of another storage may sum in another order.
  EXPECT_LE(relative_error(logits_of(directory.path()), logits_of(kDirectory)), 1e-5);
}

TEST(CheckpointVariants, InF16GiveNearlyTheSameLogits) {
  const TemporaryDirectory directory;
  write_variant(directory.path(), DType::f16);
  // F16 has three bits more than BF16, so only weights below 2^-14 are rounded: to units of 2^-24.
  EXPECT_LE(relative_error(logits_of(directory.path()), logits_of(kDirectory)), 1e-4);
}

// A text-only checkpoint of the same decoder gives the logits of the multimodal one.
TEST(CheckpointVariants, AsAPlainDecoderGiveTheSameLogitsForText) {
  const TemporaryDirectory directory;
  const MappedFile file(kDirectory / "model.safetensors");
  std::vector<FileTensor> tensors;
  const std::string prefix = "model.language_model.";
  for (const StoredTensor& tensor : parse_safetensors(file.bytes(), "model.safetensors")) {
    if (tensor.name.starts_with("model.visual.")) continue;
    const std::string name = tensor.name.starts_with(prefix)
                                 ? "model." + tensor.name.substr(prefix.size())
                                 : tensor.name;
    tensors.push_back({name, "BF16", tensor.shape, {tensor.bytes.begin(), tensor.bytes.end()}});
  }
  write_safetensors(directory.path() / "model.safetensors", tensors);
  Json config = read_json_file(kDirectory / "config.json").at("text_config");
  config["architectures"] = {"Qwen3ForCausalLM"};
  config["rope_scaling"] = nullptr;
  std::ofstream(directory.path() / "config.json") << config.dump();

  TestModel multimodal(create_cpu_backend(2), kDirectory);
  TestModel text(create_cpu_backend(2), directory.path());
  EXPECT_FALSE(text.config().vision.has_value());
  const std::vector<int32_t> ids{505, 100, 200, 17, 18, 19, 504};
  EXPECT_EQ(text.prefill(ids), multimodal.prefill(ids));
}

}  // namespace
}  // namespace glimpse::testing
