#include "server/generation.h"

#include "server/event_stream.h"
#include "server/request_error.h"

namespace glimpse {

HttpResponse error_answer(const Error& error) {
  HttpResponse response{.status = http_status(error), .body = to_text(error_body(error))};
  if (response.status == 429) response.headers.emplace_back("Retry-After", "1");
  if (response.status == 503) response.headers.emplace_back("Retry-After", "5");
  return response;
}

Generation::Generation(std::shared_ptr<EngineHost::Lease> lease, std::shared_ptr<Exchange> exchange,
                       ApiAnswerHead head, OnFinished on_finished)
    : lease_(std::move(lease)),
      exchange_(std::move(exchange)),
      head_(std::move(head)),
      on_finished_(std::move(on_finished)) {}

void Generation::start(ApiRequest request) {
  streams_ = request.stream;
  include_usage_ = request.include_usage;
  answers_.resize(request.requests.size());
  exchange_->on_gone([self = shared_from_this()] { self->cancel_all(); });
  Engine& engine = lease_->engine();
  for (size_t i = 0; i < request.requests.size(); ++i) {
    RequestId id = 0;
    try {
      id = engine.submit(
          std::move(request.requests[i]),
          [self = shared_from_this(), i](const Event& event) { self->on_event(i, event); });
    } catch (const Error& error) {
      cancel_all();
      const std::lock_guard lock(mutex_);
      fail(error);
      return;
    }
    const std::lock_guard lock(mutex_);
    ids_.push_back(id);
    if (cancelled_) engine.cancel(id);  // the client left, or another choice failed, meanwhile
  }
}

void Generation::cancel_all() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  for (const RequestId id : ids_) lease_->engine().cancel(id);
}

void Generation::on_event(size_t choice, const Event& event) {
  const std::lock_guard lock(mutex_);
  if (!exchange_) return;
  collect(choice, event);
  if (event.kind == Event::Kind::failed) return fail(*event.error);
  if (streams_) {
    start_stream();
    const bool has_news =
        !event.text.empty() || !event.logprobs.empty() || !event.tool_call_pieces.empty();
    if (has_news) send(text_chunk(head_, choice, event));
    if (event.kind == Event::Kind::finished) send(last_chunk(head_, choice, event));
  }
  if (event.kind == Event::Kind::finished && ++num_finished_ == answers_.size()) finish();
}

void Generation::collect(size_t choice, const Event& event) {
  Answer& answer = answers_[choice];
  if (!streams_) {
    (event.is_reasoning ? answer.reasoning : answer.text) += event.text;
    answer.logprobs.insert(answer.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
  }
  if (event.kind == Event::Kind::text) return;
  answer.tool_calls = event.tool_calls;
  answer.finish_reason = event.finish_reason;
  answer.usage = event.usage;
  answer.timings = event.timings;
}

// Only with the first event: until then an error can still have its status.
void Generation::start_stream() {
  if (stream_started_) return;
  stream_started_ = true;
  exchange_->start_stream({.status = 200,
                           .content_type = "text/event-stream",
                           .headers = {{"Cache-Control", "no-cache"}}});
  if (head_.kind != ApiKind::chat) return;
  for (size_t i = 0; i < answers_.size(); ++i) send(first_chunk(head_, i));
}

void Generation::send(const Json& chunk) {
  exchange_->stream(stream_event(to_text(chunk)));
}

void Generation::end_stream() {
  exchange_->stream(stream_event(kStreamEnd));
  exchange_->finish_stream();
}

void Generation::fail(const Error& error) {
  if (!exchange_) return;
  if (stream_started_) {
    send(error_body(error));
    end_stream();
  } else {
    exchange_->respond(error_answer(error));
  }
  cancelled_ = true;
  for (const RequestId id : ids_) lease_->engine().cancel(id);
  on_finished_({.failed = true});
  exchange_.reset();  // last: with it the connection and the server may end
}

void Generation::finish() {
  if (streams_) {
    if (include_usage_) send(usage_chunk(head_, answers_));
    end_stream();
  } else {
    exchange_->respond({.body = to_text(whole_answer(head_, answers_))});
  }
  const Timings& timings = answers_.front().timings;
  on_finished_(
      {.first_token_milliseconds = timings.first_token, .total_milliseconds = timings.total});
  exchange_.reset();  // last: with it the connection and the server may end
}

}  // namespace glimpse
