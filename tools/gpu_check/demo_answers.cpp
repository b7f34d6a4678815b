// The bundled checkpoint's 80 answers (16 pictures, 5 prompts each) through the whole engine on the
// GPU, compared with transformers' tokens. One JSON object on standard output: how many answers are
// equal, and of each other one how clearly its closest token was ahead.
//   demo_answers ANSWERS.json PICTURES_FOLDER [fast|exact [fp8]]
#include <filesystem>

#include <fmt/format.h>

#include "base/json.h"
#include "glimpse/engine.h"

namespace glimpse {
namespace {

Answer ask(Engine& engine, const std::filesystem::path& picture, const std::string& prompt,
           int max_tokens) {
  Request request;
  request.messages.push_back(
      {.role = "user", .parts = {Part::of_picture({.path = picture}), Part::of_text(prompt)}});
  request.sampling.temperature = 0.0F;
  request.sampling.repetition_penalty = 1.0F;
  request.sampling.max_tokens = max_tokens;
  request.sampling.loop_guard = false;
  return engine.answer(std::move(request));
}

Json compare(Engine& engine, const Json& pictures, const std::filesystem::path& folder) {
  Json differences = Json::array();
  int equal = 0;
  int total = 0;
  for (const Json& picture : pictures) {
    for (const Json& golden : picture.at("answers")) {
      const auto expected = golden.at("ids").get<std::vector<int32_t>>();
      const auto file = picture.at("file").get<std::string>();
      const auto prompt = golden.at("prompt").get<std::string>();
      const Answer answer = ask(engine, folder / file, prompt, static_cast<int>(expected.size()));
      ++total;
      if (answer.tokens == expected) {
        ++equal;
        continue;
      }
      differences.push_back({{"file", file},
                             {"prompt", prompt},
                             {"smallest_top2_logit_gap", golden.at("smallest_top2_logit_gap")},
                             {"expected", golden.at("text")},
                             {"text", answer.text}});
    }
  }
  return {{"answers", total}, {"equal", equal}, {"differences", differences}};
}

int run(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: demo_answers ANSWERS.json PICTURES_FOLDER [fast|exact [fp8]]\n");
    return 1;
  }
  EngineOptions options;
  options.device = DeviceChoice::cuda;
  const bool exact = argc > 3 && std::string_view(argv[3]) == "exact";
  options.arithmetic = exact ? Arithmetic::exact : Arithmetic::fast;
  const bool kv_is_fp8 = argc > 4 && std::string_view(argv[4]) == "fp8";
  if (kv_is_fp8) options.kv_format = KvFormat::fp8;
  Engine engine(options);
  Json result = compare(engine, read_json_file(argv[1]), argv[2]);
  result["arithmetic"] = exact ? "exact" : "fast";
  result["kv"] = kv_is_fp8 ? "fp8" : "automatic";
  result["device"] = engine.model().device;
  fmt::print("{}\n", result.dump());
  return 0;
}

}  // namespace
}  // namespace glimpse

int main(int argc, char** argv) {
  try {
    return glimpse::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "demo_answers: {}\n", error.what());
    return 1;
  }
}
