// What a caller sees: the thin shell around the implementation, and the calls that wait.
#include <future>
#include <utility>

#include "glimpse/engine.h"
#include "runtime/engine_implementation.h"

namespace glimpse {

Engine::Engine(const EngineOptions& options)
    : implementation_(std::make_unique<Implementation>(options)) {}

Engine::~Engine() = default;

RequestId Engine::submit(Request request, EventCallback on_event) {
  return implementation_->submit(std::move(request), std::move(on_event));
}

void Engine::cancel(RequestId id) {
  implementation_->cancel(id);
}

Answer Engine::answer(Request request, const EventCallback& on_event) {
  Answer answer;
  std::promise<void> ended;
  std::optional<Error> error;
  submit(std::move(request), [&](const Event& event) {
    (event.is_reasoning ? answer.reasoning : answer.text) += event.text;
    answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
    answer.logprobs.insert(answer.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (event.kind != Event::Kind::text) {
      answer.tool_calls = event.tool_calls;
      answer.finish_reason = event.finish_reason;
      answer.usage = event.usage;
      answer.timings = event.timings;
      error = event.error;
    }
    // The promise goes last: after it, these variables may be gone.
    std::exception_ptr thrown;
    try {
      if (on_event) on_event(event);
    } catch (...) {
      thrown = std::current_exception();
    }
    if (event.kind != Event::Kind::text) return ended.set_value();
    if (thrown) std::rethrow_exception(thrown);
  });
  ended.get_future().wait();
  if (error) throw Error(*error);
  return answer;
}

std::string Engine::caption(const std::filesystem::path& picture, std::string_view prompt) {
  Message message{.role = "user"};
  message.parts.push_back(Part::of_picture({.path = picture}));
  message.parts.push_back(Part::of_text(std::string(prompt)));
  Request request;
  request.messages.push_back(std::move(message));
  return answer(std::move(request)).text;
}

const ModelInfo& Engine::model() const {
  return implementation_->model_info();
}

EngineStatus Engine::status() const {
  return implementation_->status();
}

}  // namespace glimpse
