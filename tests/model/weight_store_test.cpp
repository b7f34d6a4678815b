#include "model/weight_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cpu/cpu_backend.h"
#include "model/weights.h"
#include "paths.h"
#include "safetensors_file.h"

namespace glimpse::testing {
namespace {

using ::testing::HasSubstr;

FileTensor zeros(const std::string& name, const std::string& dtype, std::vector<int64_t> shape) {
  int64_t bytes = dtype == "F32" ? 4 : dtype == "F8_E4M3" ? 1 : 2;
  for (const int64_t size : shape) bytes *= size;
  return {name, dtype, std::move(shape), std::vector<std::byte>(static_cast<size_t>(bytes))};
}

template <typename Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class WeightStoreTest : public ::testing::Test {
 protected:
  WeightStore store(const std::vector<FileTensor>& tensors) {
    write_safetensors(directory_.path() / "model.safetensors", tensors);
    return WeightStore(directory_.path());
  }
  [[nodiscard]] std::filesystem::path path(const std::string& name) const {
    return directory_.path() / name;
  }

 private:
  TemporaryDirectory directory_;
};

TEST_F(WeightStoreTest, FindsBothTowersUnderEveryKnownPrefix) {
  struct Names {
    std::string text, vision, head;
  };
  for (const Names& names :
       {Names{"model.language_model.", "model.visual.", "lm_head.weight"},
        Names{"language_model.model.", "visual.", "language_model.lm_head.weight"},
        Names{"model.", "visual.", ""}}) {
    std::vector<FileTensor> tensors{zeros(names.text + "embed_tokens.weight", "BF16", {2, 3}),
                                    zeros(names.vision + "patch_embed.proj.weight", "BF16", {1})};
    if (!names.head.empty()) tensors.push_back(zeros(names.head, "BF16", {2, 3}));
    const WeightStore weights = store(tensors);
    EXPECT_EQ(weights.text_prefix(), names.text);
    EXPECT_EQ(weights.vision_prefix(), names.vision);
    EXPECT_EQ(weights.head_name(), names.head);
  }
  EXPECT_THAT(message_of([&] { store({zeros("transformer.wte", "F32", {1})}); }),
              HasSubstr("no embed_tokens.weight under any known prefix"));
}

TEST_F(WeightStoreTest, NamesTensorShapeAndDtypeInItsErrors) {
  const WeightStore weights = store({zeros("model.embed_tokens.weight", "F32", {2, 3})});
  const auto get = [&](const char* name, std::initializer_list<int64_t> shape, DType dtype) {
    return message_of([&] { static_cast<void>(weights.get(name, shape, {dtype})); });
  };
  EXPECT_THAT(get("model.norm.weight", {3}, DType::f32),
              HasSubstr("lacks the tensor 'model.norm.weight'"));
  EXPECT_THAT(get("model.embed_tokens.weight", {3, 2}, DType::f32),
              HasSubstr("'model.embed_tokens.weight' has the shape [2, 3], expected is [3, 2]"));
  EXPECT_THAT(get("model.embed_tokens.weight", {2, 3}, DType::bf16),
              HasSubstr("is stored as f32, expected is bf16"));
  EXPECT_EQ(get("model.embed_tokens.weight", {2, 3}, DType::f32), "no error");
}

TEST_F(WeightStoreTest, WidensScalesOfEveryDtypeAndRequiresThem) {
  for (const std::string dtype : {"F32", "BF16", "F16"}) {
    FileTensor scales = zeros("m.weight_scale_inv", dtype, {2, 2});
    const uint16_t one = dtype == "BF16" ? 0x3F80 : 0x3C00;
    for (size_t i = 0; i < 4; ++i) {
      const float one_f32 = 1;
      if (dtype == "F32") {
        std::memcpy(scales.bytes.data() + 4 * i, &one_f32, 4);
      } else {
        std::memcpy(scales.bytes.data() + 2 * i, &one, 2);
      }
    }
    WeightStore weights = store({zeros("model.embed_tokens.weight", "F32", {1, 1}),
                                 zeros("m.weight", "F8_E4M3", {129, 200}), scales});
    const LinearPart part = weights.linear_part("m", 129, 200);
    EXPECT_EQ(part.scales.dtype(), DType::f32);
    for (const float scale : part.scales.span<float>()) EXPECT_EQ(scale, 1.0F);
  }
  WeightStore weights = store({zeros("model.embed_tokens.weight", "F32", {1, 1}),
                               zeros("m.weight", "F8_E4M3", {129, 200})});
  EXPECT_THAT(message_of([&] { static_cast<void>(weights.linear_part("m", 129, 200)); }),
              HasSubstr("'m.weight' is FP8, but its scales 'm.weight_scale_inv' are missing"));
}

TEST_F(WeightStoreTest, RefusesAScaleThatIsNotANumber) {
  FileTensor scales = zeros("m.weight_scale_inv", "F32", {1, 1});
  scales.bytes.assign(4, std::byte{0xFF});
  WeightStore weights = store({zeros("model.embed_tokens.weight", "F32", {1, 1}),
                               zeros("m.weight", "F8_E4M3", {3, 5}), scales});
  EXPECT_THAT(message_of([&] { static_cast<void>(weights.linear_part("m", 3, 5)); }),
              HasSubstr("holds a scale that is not a number"));
}

TEST_F(WeightStoreTest, ReadsATensorAtAnOddAddress) {
  // One byte before it: no element of two bytes may live there.
  FileTensor embedding = zeros("model.embed_tokens.weight", "BF16", {1, 2});
  embedding.bytes = {std::byte{0x80}, std::byte{0x3F}, std::byte{0x00}, std::byte{0xC0}};
  FileTensor odd{"odd", "U8", {1}, {std::byte{1}}};
  for (const std::vector<FileTensor>& tensors :
       {std::vector{odd, embedding}, std::vector{embedding, odd}}) {
    WeightStore weights = store(tensors);
    const Tensor floats = weights.get_f32("model.embed_tokens.weight", {1, 2});
    EXPECT_EQ(floats.span<float>()[0], 1.0F);
    EXPECT_EQ(floats.span<float>()[1], -2.0F);
  }
}

TEST_F(WeightStoreTest, ReadsShardsAndNamesWhatTheIndexPromisesInVain) {
  write_safetensors(path("a.safetensors"), {zeros("model.embed_tokens.weight", "F32", {1, 1})});
  write_safetensors(path("b.safetensors"), {zeros("model.norm.weight", "F32", {1})});
  const auto open = [&](const Json& map) {
    std::ofstream(path("model.safetensors.index.json")) << Json{{"weight_map", map}}.dump();
    return WeightStore(path(""));
  };
  const Json good = {{"model.embed_tokens.weight", "a.safetensors"},
                     {"model.norm.weight", "b.safetensors"}};
  EXPECT_EQ(open(good).num_tensors(), 2);
  EXPECT_EQ(open(good).num_parameters(), 2);
  Json bad = good;
  bad["model.layers.0.x"] = "b.safetensors";
  EXPECT_THAT(message_of([&] { open(bad); }),
              HasSubstr("places 'model.layers.0.x' in b.safetensors, which lacks it"));
  bad = good;
  bad["model.norm.weight"] = "../b.safetensors";
  EXPECT_THAT(message_of([&] { open(bad); }), HasSubstr("not in its directory"));
  bad = good;
  bad["model.norm.weight"] = "c.safetensors";
  EXPECT_THAT(message_of([&] { open(bad); }), HasSubstr("c.safetensors"));
  EXPECT_THAT(message_of([&] { open(Json(3)); }), HasSubstr("no object 'weight_map'"));
}

TEST(BindWeights, RefusesNanInFp8AndNamesTheTensor) {
  const TemporaryDirectory directory;
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(unpacked_golden_dir() / "tiny-fp8" / name, directory.path() / name);
  }
  std::filesystem::permissions(directory.path() / "model.safetensors",
                               std::filesystem::perms::owner_all);
  const std::string name = "model.language_model.layers.2.mlp.down_proj.weight";
  size_t offset = 0;
  {
    const MappedFile file(directory.path() / "model.safetensors");
    for (const StoredTensor& tensor : parse_safetensors(file.bytes(), "model.safetensors")) {
      if (tensor.name == name) {
        offset = static_cast<size_t>(tensor.bytes.data() - file.bytes().data()) + 777;
      }
    }
  }
  std::fstream file(directory.path() / "model.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put('\xFF');
  file.close();
  const ModelConfig config = ModelConfig::from_directory(directory.path());
  WeightStore store(directory.path());
  const std::unique_ptr<Backend> backend = create_reference_backend();
  Arena arena(backend->allocate(64 << 20, "weights"), "weights");
  EXPECT_THAT(message_of([&] {
                static_cast<void>(bind_language_weights(store, config.text, *backend, arena));
              }),
              HasSubstr("tensor '" + name + "' holds NaN"));
}

TEST(BindWeights, MeasuresExactlyWhatItTakes) {
  const std::unique_ptr<Backend> backend = create_reference_backend();
  for (const std::filesystem::path& directory :
       {unpacked_golden_dir() / "tiny-fp8", unpacked_golden_dir() / "tiny-8b-like",
        demo_model_dir()}) {
    for (const BindOptions& options : {BindOptions{}, BindOptions{.quantize_to_fp8 = true}}) {
      const ModelConfig config = ModelConfig::from_directory(directory);
      WeightStore store(directory);
      Arena measuring = Arena::measuring(Device::cpu);
      static_cast<void>(bind_language_weights(store, config.text, *backend, measuring, options));
      Arena arena(backend->allocate(measuring.used_bytes(), "weights"), "weights");
      static_cast<void>(bind_language_weights(store, config.text, *backend, arena, options));
      EXPECT_EQ(arena.used_bytes(), measuring.used_bytes());
    }
  }
}

TEST(BindWeights, TiesTheHeadToTheEmbeddingOnlyWhenThereIsNone) {
  const std::unique_ptr<Backend> backend = create_reference_backend();
  for (const std::string name : {"tiny-fp8", "tiny-8b-like"}) {
    const ModelConfig config = ModelConfig::from_directory(unpacked_golden_dir() / name);
    WeightStore store(unpacked_golden_dir() / name);
    Arena arena(backend->allocate(64 << 20, "weights"), "weights");
    const LanguageWeights weights = bind_language_weights(store, config.text, *backend, arena);
    const bool is_tied = weights.lm_head.parts.front().weight.raw() == weights.embed_tokens.raw();
    EXPECT_EQ(is_tied, name == "tiny-fp8");
  }
}

}  // namespace
}  // namespace glimpse::testing
