// The demo checkpoint's pictures with transformers' answers, and ways to ask an engine for them.
#pragma once

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "glimpse/engine.h"
#include "paths.h"

namespace glimpse::testing {

struct GoldenAnswer {
  std::string file;
  std::string prompt;
  int64_t prompt_tokens = 0;
  std::vector<int32_t> ids;  // the stop token included
  std::string text;
  std::vector<std::pair<int32_t, float>> first_token_top5;
  double smallest_gap = 0;
};

inline std::filesystem::path demo_golden_dir() {
  return golden_dir() / "demo";
}

inline std::vector<GoldenAnswer> golden_answers() {
  std::vector<GoldenAnswer> answers;
  for (const Json& picture : read_json_file(demo_golden_dir() / "answers.json")) {
    for (const Json& json : picture["answers"]) {
      GoldenAnswer answer;
      answer.file = picture["file"].get<std::string>();
      answer.prompt = json["prompt"].get<std::string>();
      answer.prompt_tokens = json["prompt_tokens"].get<int64_t>();
      answer.ids = json["ids"].get<std::vector<int32_t>>();
      answer.text = json["text"].get<std::string>();
      for (const Json& pair : json["first_token_top5"]) {
        answer.first_token_top5.emplace_back(pair[0].get<int32_t>(), pair[1].get<float>());
      }
      answer.smallest_gap = json["smallest_top2_logit_gap"].get<double>();
      answers.push_back(std::move(answer));
    }
  }
  return answers;
}

/// A question about a picture of the golden folder, or about none.
inline Request question(const std::string& file, const std::string& text) {
  Message message;
  message.role = "user";
  if (!file.empty()) {
    Picture picture;
    picture.path = demo_golden_dir() / "pictures" / file;
    message.parts.push_back(Part::of_picture(std::move(picture)));
  }
  message.parts.push_back(Part::of_text(text));
  Request request;
  request.messages.push_back(std::move(message));
  return request;
}

inline Request question(const GoldenAnswer& golden) {
  return question(golden.file, golden.prompt);
}

inline EngineOptions cpu_options(int max_sequences) {
  EngineOptions options;
  options.device = DeviceChoice::cpu;
  options.max_sequences = max_sequences;
  return options;
}

/// An answer in flight: submit() without waiting.
class Pending {
 public:
  Pending(Engine& engine, Request request) : state_(std::make_shared<State>()) {
    // Shared with the callback, which may outlive the test's interest.
    id_ = engine.submit(std::move(request), [state = state_](const Event& event) {
      Answer& answer = state->answer;
      (event.is_reasoning ? answer.reasoning : answer.text) += event.text;
      answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
      answer.logprobs.insert(answer.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
      if (event.kind == Event::Kind::text) return;
      answer.tool_calls = event.tool_calls;
      answer.finish_reason = event.finish_reason;
      answer.usage = event.usage;
      answer.timings = event.timings;
      state->error = event.error;
      state->ended.set_value();
    });
  }
  /// Waits; throws the request's error.
  Answer get() {
    state_->ended.get_future().wait();
    if (state_->error) throw Error(*state_->error);
    return state_->answer;
  }
  [[nodiscard]] RequestId id() const { return id_; }

 private:
  struct State {
    Answer answer;
    std::optional<Error> error;
    std::promise<void> ended;
  };
  std::shared_ptr<State> state_;
  RequestId id_ = 0;
};

inline std::vector<Answer> ask_all(Engine& engine, const std::vector<GoldenAnswer>& goldens) {
  std::vector<Pending> pending;
  for (const GoldenAnswer& golden : goldens) pending.emplace_back(engine, question(golden));
  std::vector<Answer> answers;
  for (Pending& one : pending) answers.push_back(one.get());
  return answers;
}

}  // namespace glimpse::testing
