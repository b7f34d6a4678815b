// One answer under way: submits a request to the engine for each choice and turns their events into
// a whole JSON answer or a stream of server-sent events.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "server/api_response.h"
#include "server/chat_request.h"
#include "server/engine_host.h"
#include "server/http.h"

namespace glimpse {

/// The answer to any error, with Retry-After where trying again helps.
[[nodiscard]] HttpResponse error_answer(const Error& error);

/// What became of an answer, for the metrics.
struct GenerationRecord {
  bool failed = false;
  double first_token_milliseconds = 0;
  double total_milliseconds = 0;
};

/// Thread-safe: events come on the engine's thread, the client's leaving on a connection's. Shared
/// by these callbacks; the last of them ends it.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  using OnFinished = std::function<void(const GenerationRecord&)>;

  Generation(std::shared_ptr<EngineHost::Lease> lease, std::shared_ptr<Exchange> exchange,
             ApiAnswerHead head, OnFinished on_finished);

  /// Submits all choices. Throws as Engine::submit() does, with nothing left behind.
  void start(ApiRequest request);

 private:
  void cancel_all();
  void on_event(size_t choice, const Event& event);
  void collect(size_t choice, const Event& event);
  void send(const Json& chunk);
  void start_stream();
  void end_stream();
  void fail(const Error& error);
  void finish();

  std::mutex mutex_;
  std::shared_ptr<EngineHost::Lease> lease_;  // keeps the engine loaded until the last event
  std::shared_ptr<Exchange> exchange_;        // empty: the answer has ended
  ApiAnswerHead head_;
  OnFinished on_finished_;
  bool streams_ = false;
  bool include_usage_ = false;
  bool stream_started_ = false;
  bool cancelled_ = false;
  std::vector<RequestId> ids_;
  std::vector<Answer> answers_;
  size_t num_finished_ = 0;
};

}  // namespace glimpse
