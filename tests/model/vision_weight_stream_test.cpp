#include "model/vision_weight_stream.h"

#include <gtest/gtest.h>

#include <cstring>

#include "cpu/reference_backend.h"
#include "golden_stages.h"
#include "paths.h"
#include "test_model.h"

namespace glimpse::testing {
namespace {

// Host memory that behaves like a device's: weights are copied into the arena. What an earlier
// block left behind in a slot is overwritten.
class CopyingBackend : public ReferenceBackend {
 public:
  [[nodiscard]] LinearWeight prepare(std::span<const LinearPart> parts, LinearLayout,
                                     Arena& arena) override {
    LinearWeight result;
    for (const LinearPart& part : parts) {
      result.parts.push_back(
          {copied(part.weight, arena), copied(part.scales, arena), copied(part.bias, arena)});
    }
    return result;
  }
  using ReferenceBackend::prepare;

 private:
  static Tensor copied(const Tensor& host, Arena& arena) {
    if (host.empty()) return {};
    const Tensor copy = host.rank() == 1
                            ? arena.allocate(host.dtype(), {host.size(0)})
                            : arena.allocate(host.dtype(), {host.size(0), host.size(1)});
    if (!arena.is_measuring()) {
      std::memcpy(copy.raw(), host.raw(), static_cast<size_t>(host.num_bytes()));
    }
    return copy;
  }
};

struct StreamCase {
  std::string backend;  // "copying" or "cuda"
  std::string checkpoint;
};
void PrintTo(const StreamCase& test, std::ostream* out) {
  *out << test.checkpoint << " on " << test.backend;
}

std::unique_ptr<Backend> make_device(const std::string& name) {
  if (name == "copying") return std::make_unique<CopyingBackend>();
  return make_backend(name);
}

class StreamedVision : public ::testing::TestWithParam<StreamCase> {
 protected:
  void SetUp() override {
    if (GetParam().backend != "copying") GLIMPSE_REQUIRE_BACKEND(GetParam().backend);
  }
  [[nodiscard]] std::filesystem::path directory() const {
    return unpacked_golden_dir() / GetParam().checkpoint;
  }
  [[nodiscard]] TestModel make_model(const TestModelOptions& options = {}) const {
    return TestModel(make_device(GetParam().backend), directory(), options);
  }
};

TEST_P(StreamedVision, GivesTheSameTokensFromTwoSlotsAsFromAllWeights) {
  const GoldenStages stages(directory() / "stages-f32.safetensors");
  TestModel resident = make_model();
  TestModel streamed = make_model({.streams_vision = true});
  const std::vector<TestPicture> pictures = stages.pictures(*resident.config().vision);
  resident.encode(pictures);
  for (const int64_t blocks_at_once : {1, 100}) {
    streamed.encode(pictures, {}, blocks_at_once);
    for (size_t i = 0; i < pictures.size(); ++i) {
      const VisualTokens& expected = resident.visual()[i];
      const VisualTokens& ours = streamed.visual()[i];
      EXPECT_EQ(download_floats(streamed.backend(), ours.embeddings),
                download_floats(resident.backend(), expected.embeddings));
      for (size_t tap = 0; tap < ours.deepstack.size(); ++tap) {
        EXPECT_EQ(download_floats(streamed.backend(), ours.deepstack[tap]),
                  download_floats(resident.backend(), expected.deepstack[tap]));
      }
    }
  }
}

TEST_P(StreamedVision, TakesTwoSlotsInsteadOfTheWholeTower) {
  const TestModel resident = make_model();
  const TestModel streamed = make_model({.streams_vision = true});
  const std::unique_ptr<Backend> backend = make_device(GetParam().backend);
  WeightStore store(directory());
  const int64_t slot = VisionWeightStream::slot_bytes(store, *streamed.config().vision, *backend);
  EXPECT_GT(slot, 0);
  EXPECT_EQ(streamed.step_bytes() - resident.step_bytes(), VisionWeightStream::kSlots * slot);
  // At least the blocks and mergers beyond two of the largest are gone.
  const int64_t num_units = streamed.config().vision->depth + 1 + streamed.config().num_deepstack();
  EXPECT_GT(resident.weight_bytes() - streamed.weight_bytes(), slot);
  EXPECT_LT(resident.weight_bytes() - streamed.weight_bytes(), num_units * slot);
}

INSTANTIATE_TEST_SUITE_P(Goldens, StreamedVision,
                         ::testing::Values(StreamCase{"copying", "tiny-8b-like"},
                                           StreamCase{"copying", "tiny-fp8"},
                                           StreamCase{"cuda", "tiny-8b-like"},
                                           StreamCase{"cuda", "tiny-fp8"}),
                         [](const auto& test) {
                           std::string name = test.param.backend + "_" + test.param.checkpoint;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace glimpse::testing
