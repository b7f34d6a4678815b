// The bundled checkpoint from picture file to token ids: transformers' answers, token by token.
#include <gtest/gtest.h>

#include "base/json.h"
#include "image/decode.h"
#include "image/image_processor.h"
#include "paths.h"
#include "test_model.h"

namespace glimpse::testing {
namespace {

struct AnswerCase {
  std::string backend;
  Arithmetic arithmetic;
  std::optional<DType> kv_dtype = {};
};

void PrintTo(const AnswerCase& test, std::ostream* out) {
  *out << test.backend;
}

class DemoAnswers : public ::testing::TestWithParam<AnswerCase> {};

TestPicture prepare_picture(const std::filesystem::path& path) {
  const MappedFile file(path);
  const RgbImage image = decode_picture(file.bytes(), path.filename().string());
  const ImageProcessor processor(ImageProcessorConfig::from_directory(demo_model_dir()));
  ProcessedPicture picture = processor.process(image);
  return {picture.grid, std::move(picture.pixels)};
}

// In these answers the best logit leads by 3.8 at least: every arithmetic must give every token.
TEST_P(DemoAnswers, DescribeEveryPictureAsTransformersDoes) {
  GLIMPSE_REQUIRE_BACKEND(GetParam().backend);
  TestModel model(make_backend(GetParam().backend), demo_model_dir(),
                  {.arithmetic = GetParam().arithmetic, .kv_dtype = GetParam().kv_dtype});
  const std::filesystem::path folder = golden_dir() / "demo";
  for (const Json& picture : read_json_file(folder / "answers.json")) {
    const auto file = picture.at("file").get<std::string>();
    const Json& answer = picture.at("answers").at(0);
    ASSERT_GT(answer.at("smallest_top2_logit_gap").get<double>(), 3) << file;
    model.encode({prepare_picture(folder / "pictures" / file)});
    const auto expected = answer.at("ids").get<std::vector<int32_t>>();
    EXPECT_EQ(
        model.greedy(picture.at("prompt_ids").get<std::vector<int32_t>>(), 64, expected.back()),
        expected)
        << file;
  }
}

TEST_P(DemoAnswers, TellTheSecondPictureOfAConversationFromTheFirst) {
  GLIMPSE_REQUIRE_BACKEND(GetParam().backend);
  TestModel model(make_backend(GetParam().backend), demo_model_dir(),
                  {.arithmetic = GetParam().arithmetic, .kv_dtype = GetParam().kv_dtype});
  const std::filesystem::path folder = golden_dir() / "demo";
  const Json golden = read_json_file(folder / "two-images.json");
  model.encode({prepare_picture(folder / "pictures" / "00.png"),
                prepare_picture(folder / "pictures" / "05.png")});
  const auto expected = golden.at("answer_ids").get<std::vector<int32_t>>();
  EXPECT_EQ(model.greedy(golden.at("input_ids").get<std::vector<int32_t>>(), 64, expected.back()),
            expected);
}

INSTANTIATE_TEST_SUITE_P(
    Backends, DemoAnswers,
    ::testing::Values(AnswerCase{"cpu", Arithmetic::exact}, AnswerCase{"cpu", Arithmetic::fast},
                      AnswerCase{"cpu", Arithmetic::exact, DType::f8_e4m3},
                      AnswerCase{"cpu", Arithmetic::w8a8}, AnswerCase{"cuda", Arithmetic::exact},
                      AnswerCase{"cuda", Arithmetic::fast}, AnswerCase{"cuda", Arithmetic::w8a8}),
    [](const auto& test) {
      const AnswerCase& answers = test.param;
      const char* arithmetic = answers.arithmetic == Arithmetic::exact  ? "_exact"
                               : answers.arithmetic == Arithmetic::w8a8 ? "_w8a8"
                                                                        : "_fast";
      return answers.backend + arithmetic + (answers.kv_dtype ? "_fp8_kv" : "");
    });

TEST(TwoPictures, HaveTransformersPositions) {
  const Json golden = read_json_file(golden_dir() / "demo" / "two-images.json");
  const ModelConfig config = ModelConfig::from_directory(demo_model_dir());
  const Json answers = read_json_file(golden_dir() / "demo" / "answers.json");
  std::vector<PatchGrid> grids;
  for (const size_t picture : {0, 5}) {  // 00.png and 05.png
    const Json& grid = answers.at(picture).at("grid_thw");
    grids.push_back({grid[0], grid[1], grid[2]});
  }
  const auto ids = golden.at("input_ids").get<std::vector<int32_t>>();
  const int64_t merge = config.vision->spatial_merge_size;
  const SequencePositions positions =
      sequence_positions(static_cast<int64_t>(ids.size()),
                         find_visual_spans(ids, config.image_token_id, grids, merge), merge);
  for (size_t axis = 0; axis < 3; ++axis) {
    EXPECT_EQ(positions.axes[axis], golden.at("position_ids")[axis].get<std::vector<int32_t>>());
  }
  EXPECT_EQ(positions.rope_delta(), golden.at("rope_delta").get<int32_t>());
}

}  // namespace
}  // namespace glimpse::testing
