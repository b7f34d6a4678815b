// The life of a request around the steps: submitted, prepared by a worker, told about its tokens,
// and ended by exactly one last event.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

#include "runtime/engine_implementation.h"
#include "runtime/process_memory.h"
#include "runtime/request_rules.h"

namespace glimpse {
namespace {

// Pixels of prepared pictures that may wait for the vision tower: decoding further ahead would
// only cost memory.
constexpr int64_t kMaxPixelBytes = int64_t{128} << 20;

constexpr const char* kRestart = "restart the program";

uint64_t fresh_seed() {
  std::random_device device;
  return uint64_t{device()} << 32U | device();
}

Error as_error(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return {ErrorCode::out_of_memory, "there is not enough memory to prepare the request",
            "send smaller pictures or a shorter prompt"};
  } catch (const std::exception& error) {
    return {ErrorCode::internal, error.what(), "please report this defect of Glimpse"};
  }
}

}  // namespace

// ---- callers' threads -------------------------------------------------------------------------

RequestId Engine::Implementation::submit(Request request, EventCallback on_event) {
  check_sampling(request.sampling);
  check_answer_form(request);
  check_prompt(model_, request);
  auto open = std::make_unique<OpenRequest>();
  open->on_event = std::move(on_event);
  open->submitted = Clock::now();
  open->sampling = resolve_sampling(request.sampling, model_.files.generation, fresh_seed());
  open->preparation.emplace();
  open->preparation->request = std::move(request);

  const std::lock_guard lock(mutex_);
  if (!status_.healthy) throw Error(ErrorCode::device, status_.fault, kRestart);
  const int waiting = num_open_ - status_.running;
  if (waiting >= std::max(1, options_.max_queue)) {
    throw Error(ErrorCode::overloaded, fmt::format("{} requests are waiting already", waiting),
                "try again in a moment");
  }
  ++num_open_;
  open->id = next_id_++;
  const RequestId id = open->id;
  listeners_.emplace(id, open->on_event);
  // Messages are copied; the request itself is handed over inside one.
  inbox_.push_back([this, handed_over = std::make_shared<std::unique_ptr<OpenRequest>>(
                              std::move(open))] { accept(std::move(*handed_over)); });
  wake_.notify_one();
  return id;
}

void Engine::Implementation::cancel(RequestId id) {
  post([this, id] {
    if (OpenRequest* request = find(id)) {
      fail(*request, Error(ErrorCode::cancelled, "the request was cancelled"));
    }
  });
}

EngineStatus Engine::Implementation::status() const {
  EngineStatus status;
  {
    const std::lock_guard lock(mutex_);
    status = status_;
    status.waiting = std::max(0, num_open_ - status.running);
    status.completion_tokens_per_second = recent_tokens_.per_second(Clock::now());
  }
  const ProcessMemory memory = process_memory();
  status.resident_bytes = memory.resident_bytes;
  status.peak_resident_bytes = memory.peak_resident_bytes;
  return status;
}

void Engine::Implementation::post(Message message) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(message));
  }
  wake_.notify_one();
}

// ---- preparation ------------------------------------------------------------------------------

void Engine::Implementation::accept(std::unique_ptr<OpenRequest> request) {
  const RequestId id = request->id;
  // Shared with the worker that fills it and the message that brings it back.
  auto preparation = std::make_shared<Preparation>(std::move(*request->preparation));
  request->preparation.reset();
  requests_.emplace(id, std::move(request));
  to_prepare_.emplace_back(id, std::move(preparation));
  start_preparations();
}

// Hands prompts to the workers in the order they came, no further ahead than their pixels fit.
void Engine::Implementation::start_preparations() {
  if (to_prepare_.empty()) return;
  int64_t pixel_bytes = 0;
  for (const auto& [id, request] : requests_) pixel_bytes += request->pixel_bytes();
  const VisionConfig* vision = model_.has_vision() ? &*model_.files.config.vision : nullptr;
  const int64_t most_per_picture =
      vision == nullptr
          ? 0
          : model_.plan.shape.max_picture_patches * vision->patch_size * vision->patch_size * 3;
  pixel_bytes += num_preparing_ * most_per_picture;
  while (!to_prepare_.empty() && (pixel_bytes == 0 || pixel_bytes < kMaxPixelBytes)) {
    auto [id, preparation] = std::move(to_prepare_.front());
    to_prepare_.pop_front();
    if (find(id) == nullptr) continue;  // cancelled meanwhile
    ++num_preparing_;
    pixel_bytes += most_per_picture;
    prepare(std::move(preparation), id);
  }
}

void Engine::Implementation::prepare(std::shared_ptr<Preparation> preparation, RequestId id) {
  workers_->post([this, id, preparation = std::move(preparation)] {
    preparation->started = Clock::now();
    try {
      preparation->prompt = prepare_prompt(model_, preparation->request, &*workers_);
      preparation->constraint =
          constraints_.make(preparation->request, preparation->prompt.ends_in_reasoning);
    } catch (...) {
      preparation->error = as_error(std::current_exception());
    }
    post([this, id, preparation] { finish_preparation(id, std::move(*preparation)); });
  });
}

void Engine::Implementation::finish_preparation(RequestId id, Preparation preparation) {
  --num_preparing_;
  OpenRequest* request = find(id);
  if (request == nullptr) return;
  request->preparation = std::move(preparation);
  request->prepared = Clock::now();
  request->timings.queue = milliseconds_between(request->submitted, request->preparation->started);
  if (request->preparation->error) return fail(*request, *request->preparation->error);

  const PreparedPrompt& prompt = request->prompt();
  const SamplingOptions& options = request->preparation->request.sampling;
  request->timings.picture_decode = prompt.decode_milliseconds;
  request->timings.picture_resize = prompt.resize_milliseconds;
  Sequence& sequence = request->sequence;
  sequence.arrival = id;
  sequence.tokens = prompt.tokens;
  sequence.num_prompt_tokens = sequence.num_tokens();
  for (const PreparedPicture& picture : prompt.pictures) {
    sequence.pictures.push_back({.first = picture.span.first,
                                 .count = picture.usage.visual_tokens,
                                 .content = picture.processed.content_hash,
                                 .has_pixels = true});
    request->usage.pictures.push_back(picture.usage);
    request->usage.pictures.back().from_cache = true;  // until the vision tower says otherwise
  }
  request->usage.prompt_tokens = sequence.num_prompt_tokens;
  const bool has_tools = !request->preparation->request.tools_json.empty() &&
                         request->preparation->request.tool_choice != ToolChoice::none;
  request->writer.emplace(
      AnswerRules{.tokenizer = model_.text.tokenizer ? &*model_.text.tokenizer : nullptr,
                  .stop = options.stop,
                  .eos_ids = options.ignore_eos ? std::vector<TokenId>{}
                                                : model_.files.generation.eos_token_ids,
                  .max_tokens = std::min<int64_t>(
                      options.max_tokens, model_.plan.shape.context - sequence.num_prompt_tokens),
                  .loop_guard = options.loop_guard && !options.ignore_eos,
                  .has_tools = has_tools,
                  .calls_follow_grammar = request->preparation->constraint != nullptr,
                  .starts_in_reasoning = prompt.ends_in_reasoning,
                  .think_begin = think_begin_,
                  .think_end = think_end_,
                  .thinking_budget = options.thinking_budget});
  scheduler_.add(sequence);
}

void Engine::Implementation::want_pixels(const PictureOf& wanted) {
  OpenRequest& request = request_of(*wanted.sequence);
  const Picture picture = *pictures_of(request.preparation->request)[wanted.index];
  ++num_preparing_;
  workers_->post([this, id = request.id, index = wanted.index, picture] {
    // Shared with the message that brings it back.
    auto again = std::make_shared<ProcessedPicture>();
    std::optional<Error> error;
    try {
      *again = prepare_picture_again(model_, picture, &*workers_);
    } catch (...) {
      error = as_error(std::current_exception());
    }
    post([this, id, index, again, error] {
      --num_preparing_;
      OpenRequest* open = find(id);
      if (open == nullptr) return;
      if (error) return fail(*open, *error);
      open->preparation->prompt.pictures[index].processed.pixels = std::move(again->pixels);
      open->sequence.pictures[index].has_pixels = true;
      open->sequence.pictures[index].pixels_wanted = false;
    });
  });
}

// ---- tokens and the end -----------------------------------------------------------------------

void Engine::Implementation::take_token(OpenRequest& request, const SampledToken& sampled) {
  if (request.preparation->error) return fail(request, *request.preparation->error);
  const TokenId token = sampled.chosen.token;
  if (!std::isfinite(sampled.chosen.log_prob) || token < 0) {
    return fail(request, Error(ErrorCode::internal, "the model's output is not a number",
                               "the checkpoint may be damaged, or this is a defect of Glimpse"));
  }
  if (!request.first_token) {
    request.first_token = Clock::now();
    request.timings.first_token = milliseconds_between(request.submitted, *request.first_token);
    request.usage.cached_prompt_tokens = request.sequence.num_matched;
    counters_.prefix_cache_hit_tokens += request.sequence.num_matched;
    counters_.prompt_tokens += request.usage.prompt_tokens;
    for (const PictureUsage& picture : request.usage.pictures) {
      counters_.picture_cache_hits += picture.from_cache ? 1 : 0;
    }
  }
  ++counters_.completion_tokens;
  request.sequence.tokens.push_back(token);
  const bool was_reasoning = request.writer->is_reasoning();
  std::vector<Event> events;
  const std::optional<FinishReason> reason =
      request.writer->push(token, log_probs_of(request, sampled), events);
  if (request.preparation->constraint && !was_reasoning && !reason) {
    request.preparation->constraint->accept(token);
  }
  for (const Event& event : events) emit(request, event);
  if (request.cancel_wanted) {
    return fail(request, Error(ErrorCode::cancelled, "the caller's event handler failed"));
  }
  if (reason) finish(request, *reason);
}

std::optional<TokenLogProbs> Engine::Implementation::log_probs_of(
    const OpenRequest& request, const SampledToken& sampled) const {
  if (request.sampling.logprobs < 0) return std::nullopt;
  const auto described = [&](const TokenChance& chance) {
    TokenLogProb result{.token = chance.token, .log_prob = chance.log_prob};
    if (model_.text.tokenizer) result.bytes = model_.text.tokenizer->token_bytes(chance.token);
    return result;
  };
  TokenLogProbs result{.chosen = described(sampled.chosen)};
  for (const TokenChance& chance : sampled.top) result.top.push_back(described(chance));
  return result;
}

void Engine::Implementation::finish(OpenRequest& request, FinishReason reason) {
  std::vector<Event> events;
  Event last{.kind = Event::Kind::finished};
  request.writer->finish(reason, events, last.tool_calls);
  for (const Event& event : events) emit(request, event);
  last.finish_reason = reason;
  const Clock::time_point now = Clock::now();
  request.timings.decode = milliseconds_between(*request.first_token, now);
  ++counters_.requests_finished;
  counters_.first_token_milliseconds += request.timings.first_token;
  close(request, std::move(last));
}

void Engine::Implementation::fail(OpenRequest& request, const Error& error) {
  Event last{.kind = Event::Kind::failed};
  last.finish_reason =
      error.code() == ErrorCode::cancelled ? FinishReason::cancelled : FinishReason::error;
  last.error = error;
  ++counters_.requests_failed;
  close(request, std::move(last));
}

void Engine::Implementation::fail_all(const Error& error) {
  if (vision_ && vision_->is_busy()) vision_->abandon();
  in_flight_.reset();
  while (!requests_.empty()) fail(*requests_.begin()->second, error);
}

void Engine::Implementation::close(OpenRequest& request, Event last) {
  scheduler_.remove(request.sequence);
  if (encoding_for_ && scheduler_.vision_is_orphaned()) {
    vision_->abandon();
    scheduler_.abandon_vision();
    encoding_for_.reset();
  }
  if (request.writer) {
    request.usage.completion_tokens = request.writer->num_tokens();
    request.usage.reasoning_tokens = request.writer->num_reasoning_tokens();
  }
  request.timings.total = milliseconds_between(request.submitted, Clock::now());
  last.usage = request.usage;
  last.timings = request.timings;
  // Nobody who was told about the end finds the request in the counters any more.
  const std::unique_ptr<OpenRequest> closed = std::move(requests_.at(request.id));
  requests_.erase(closed->id);
  {
    const std::lock_guard lock(mutex_);
    --num_open_;
    if (!is_stuck_) listeners_.erase(closed->id);
  }
  publish_status();
  emit(*closed, last);
}

void Engine::Implementation::emit(OpenRequest& request, const Event& event) {
  if (!request.on_event) return;
  {
    const std::lock_guard lock(mutex_);
    if (is_stuck_) return;
    called_ = request.id;
  }
  try {
    request.on_event(event);
  } catch (...) {
    request.cancel_wanted = true;  // a caller that cannot listen wants no more
  }
  const std::lock_guard lock(mutex_);
  called_ = 0;
}

// A caller that is being called hears nothing: its callback is what does not return.
void Engine::Implementation::report_stuck() {
  const std::string fault = "a step does not come back: the GPU or its driver hangs";
  Event last{.kind = Event::Kind::failed, .finish_reason = FinishReason::error};
  last.error = Error(ErrorCode::device, fault, kRestart);
  std::map<RequestId, EventCallback> listeners;
  {
    const std::lock_guard lock(mutex_);
    is_stuck_ = true;
    status_.healthy = false;
    status_.fault = fault;
    listeners.swap(listeners_);
    listeners.erase(called_);
  }
  for (const auto& [id, on_event] : listeners) {
    try {
      if (on_event) on_event(last);
    } catch (...) {
      // There is nobody left to tell.
    }
  }
  if (!options_.on_stuck) std::_Exit(kStuckExitCode);
  options_.on_stuck(fault);
}

OpenRequest* Engine::Implementation::find(RequestId id) {
  const auto found = requests_.find(id);
  return found == requests_.end() ? nullptr : found->second.get();
}

OpenRequest& Engine::Implementation::request_of(const Sequence& sequence) {
  OpenRequest* request = find(sequence.arrival);
  check(request != nullptr, "a sequence without its request");
  return *request;
}

void Engine::Implementation::publish_status() {
  counters_.running = static_cast<int>(scheduler_.running().size());
  counters_.preemptions = scheduler_.num_preemptions();
  counters_.kv_pages_used = kv_cache_.num_referenced();
  const std::lock_guard lock(mutex_);
  if (is_stuck_) return;
  recent_tokens_.add(Clock::now(), counters_.completion_tokens - status_.completion_tokens);
  status_ = counters_;
}

}  // namespace glimpse
