// The heart of the program: one thread, one function. step() asks the scheduler what to compute,
// launches it together with the choice of a token for every sequence that is due, and hands the
// tokens out; on a GPU while the step after it runs already, which finds the tokens on the device.
#include "glimpse/engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "image/pixel_buffers.h"
#include "runtime/engine_implementation.h"
#include "runtime/process_memory.h"
#include "runtime/request_rules.h"

namespace glimpse {
namespace {

// Multiply-adds a second that a first guess at the cost of prefill assumes.
constexpr double kGuessCpu = 5e10;
constexpr double kGuessCuda = 5e13;

double guess_prefill_ms_per_row(const LoadedModel& model) {
  const double rate = model.backend->device() == Device::cpu ? kGuessCpu : kGuessCuda;
  return static_cast<double>(model.store.num_parameters()) / rate * 1e3;
}

// Rows of a prompt that a step takes while nobody is being answered: so many that a GPU's
// multiprocessors are busy.
constexpr int64_t kLeastRowsAloneCpu = 32;
constexpr int64_t kLeastRowsAloneCuda = 512;

// Queueing is waiting for a worker, and then for the first step.
void end_queueing(OpenRequest& request, Clock::time_point now) {
  if (request.was_served) return;
  request.was_served = true;
  request.timings.queue += milliseconds_between(request.prepared, now);
}

constexpr double kStuckStepSeconds = 60;

// Nothing where no step is ever called stuck.
std::chrono::milliseconds stuck_limit(const EngineOptions& options, Device device) {
  double seconds = options.stuck_step_seconds;
  if (seconds == 0 && device != Device::cpu) seconds = kStuckStepSeconds;
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

bool resolve_launch_ahead(const EngineOptions& options, Device device) {
  // The CPU computes where it is called: a step ahead would only delay the tokens before it.
  if (options.launch_ahead == LaunchAhead::automatic) return device != Device::cpu;
  return options.launch_ahead == LaunchAhead::always;
}

int choose_picture_threads(int wanted) {
  if (wanted > 0) return wanted;
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 4U));
}

}  // namespace

// ---- start and end ----------------------------------------------------------------------------

Engine::Implementation::Implementation(const EngineOptions& options)
    : options_((check_engine_options(options), options)),
      model_(options),
      kv_cache_(model_.plan.shape.kv_pages),
      picture_cache_(model_.plan.shape.visual_store_tokens),
      scheduler_(kv_cache_, picture_cache_,
                 {.max_sequences = model_.plan.shape.max_sequences,
                  .max_rows = model_.plan.shape.max_rows()}),
      pacer_(guess_prefill_ms_per_row(model_),
             model_.backend->device() == Device::cpu ? kLeastRowsAloneCpu : kLeastRowsAloneCuda),
      launches_ahead_(resolve_launch_ahead(options_, model_.backend->device())) {
  const MemoryPlan& plan = model_.plan;
  const EngineShape& shape = plan.shape;
  const ModelConfig& config = model_.files.config;
  Backend& backend = *model_.backend;
  const auto open_arena = [&](std::optional<Arena>& arena, std::string_view item) -> Arena& {
    arena.emplace(backend.allocate(plan.bytes_of_item(item), item), std::string(item));
    return *arena;
  };
  kv_pool_ =
      KvPool::carve(config.text, shape.kv_dtype, shape.kv_pages, open_arena(kv_arena_, kKvItem));
  const auto carve_vision = [&](Arena& arena) {
    if (!model_.vision) return;
    if (shape.streams_vision) {
      vision_stream_.emplace(model_.store, *config.vision, backend, *model_.vision, arena);
    }
    vision_.emplace(backend, *config.vision, model_.files.pictures, *model_.vision,
                    shape.arithmetic, shape.max_picture_patches, arena,
                    vision_stream_ ? &*vision_stream_ : nullptr);
  };
  activations_ = StepActivations::carve(config.text, shape, carve_vision,
                                        open_arena(activations_arena_, kActivationsItem));
  if (model_.vision) {
    visual_store_ = carve_visual_tokens(*config.vision, shape.arithmetic, shape.visual_store_tokens,
                                        open_arena(visual_store_arena_, kVisualStoreItem));
  }
  Arena& tables = open_arena(tables_arena_, kTablesItem);
  language_.emplace(backend, config.text, model_.language, shape.arithmetic, shape.step_limits(),
                    tables);
  sampler_.emplace(backend, config.text.vocab_size, shape.max_sequences, tables);
  if (model_.text.tokenizer) {
    think_begin_ = model_.text.tokenizer->find("<think>");
    think_end_ = model_.text.tokenizer->find("</think>");
    const auto words = (static_cast<size_t>(model_.files.config.text.vocab_size) + 31) / 32;
    thinking_mask_.assign(words, ~uint32_t{0});
    for (const TokenId eos : model_.files.generation.eos_token_ids) forbid(thinking_mask_, eos);
  }
  counters_.memory = plan.items;
  if (model_.weight_facts.mapped_bytes > 0) {
    counters_.memory.push_back({"mapped weights", model_.weight_facts.mapped_bytes});
  }
  counters_.kv_pages_total = kv_cache_.num_pages();
  publish_status();
  const std::chrono::milliseconds limit = stuck_limit(options_, backend.device());
  if (limit.count() > 0) watchdog_.emplace(limit, [this] { report_stuck(); });
  warm_up();
  model_info_ = model_.info();
  model_info_.load_milliseconds = milliseconds_between(load_begin_, Clock::now());
  workers_.emplace(choose_picture_threads(options_.picture_threads));
  thread_ = std::thread([this] { run(); });
}

Engine::Implementation::~Implementation() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
  workers_.reset();
}

void Engine::Implementation::run() {
  bool has_work = false;
  while (handle_messages(has_work)) {
    try {
      start_preparations();
      const WatchedStep watched(watchdog_ ? &*watchdog_ : nullptr);
      has_work = step();
    } catch (const Error& error) {
      // A request's own faults end it where they arise; what comes here is the engine's.
      if (error.code() == ErrorCode::device) {
        counters_.healthy = false;
        counters_.fault = error.what();
      }
      fail_all(error);
    } catch (const std::exception& error) {
      fail_all(Error(ErrorCode::internal, error.what(), "please report this defect of Glimpse"));
    }
    publish_status();
  }
  fail_all(Error(ErrorCode::cancelled, "the engine was stopped"));
}

bool Engine::Implementation::handle_messages(bool has_work) {
  std::unique_lock lock(mutex_);
  if (!has_work) wake_.wait(lock, [this] { return stopping_ || !inbox_.empty(); });
  // Also when stopping: a request in the inbox must hear that it was cancelled.
  while (!inbox_.empty()) {
    const Message message = std::move(inbox_.front());
    inbox_.pop_front();
    lock.unlock();
    message();
    lock.lock();
  }
  return !stopping_;
}

// ---- one step ---------------------------------------------------------------------------------

bool Engine::Implementation::step() {
  const Clock::time_point begin = Clock::now();
  if (!in_flight_) {
    const auto num_decoding =
        std::count_if(scheduler_.running().begin(), scheduler_.running().end(),
                      [](const Sequence* s) { return s->is_decoding(); });
    const StepPlan plan =
        scheduler_.next_step(pacer_.prefill_rows(num_decoding, model_.plan.shape.prefill_rows));
    for (const PictureOf& picture : plan.wanted_pixels) want_pixels(picture);
    if (plan.empty()) {
      check(scheduler_.is_idle() || num_preparing_ > 0, "the scheduler found nothing to do");
      return false;
    }
    publish_status();  // whoever hears of a step's tokens finds the step's requests running
    if (plan.begin_vision || plan.continue_vision) run_vision(plan);
    if (!plan.ranges.empty()) in_flight_ = launch(plan);
  }
  if (in_flight_) {
    std::optional<StepInFlight> next = launch_ahead(*in_flight_);
    collect(*std::exchange(in_flight_, std::move(next)));
  }
  ++counters_.steps;
  counters_.longest_step_milliseconds =
      std::max(counters_.longest_step_milliseconds, milliseconds_between(begin, Clock::now()));
  return true;
}

void Engine::Implementation::run_vision(const StepPlan& plan) {
  const Clock::time_point begin = Clock::now();
  if (plan.begin_vision) begin_vision(*plan.begin_vision);
  const int64_t num_blocks = pacer_.vision_blocks(encoding_patches_, vision_->num_blocks());
  const bool done = vision_->advance(num_blocks);
  model_.backend->synchronize();
  const double milliseconds = milliseconds_between(begin, Clock::now());
  pacer_.observe_vision(encoding_patches_, num_blocks, milliseconds);
  counters_.vision_milliseconds += milliseconds;
  if (OpenRequest* request = find(*encoding_for_)) request->timings.vision += milliseconds;
  if (!done) return;
  scheduler_.finish_vision();
  if (OpenRequest* request = find(*encoding_for_)) drop_dead_pixels(*request);
  encoding_for_.reset();
}

void Engine::Implementation::begin_vision(const PictureOf& picture) {
  OpenRequest& request = request_of(*picture.sequence);
  PreparedPicture& prepared = request.preparation->prompt.pictures[picture.index];
  const PictureCache::Entry& entry = *picture.get().entry;
  const VisionPicture input{.grid = prepared.processed.grid,
                            .pixels = prepared.processed.pixels,
                            .output = visual_store_.slice(entry.first, entry.count)};
  end_queueing(request, Clock::now());
  encoding_for_ = request.id;
  encoding_patches_ = prepared.processed.grid.num_patches();
  vision_->begin({&input, 1});
  request.usage.pictures[picture.index].from_cache = false;
  ++counters_.pictures;
}

StepInFlight Engine::Implementation::launch(const StepPlan& plan) {
  StepInFlight step{.plan = plan, .begin = Clock::now()};
  std::vector<TokenRange> due;
  for (const TokenRange& range : plan.ranges) {
    OpenRequest& request = request_of(*range.sequence);
    end_queueing(request, step.begin);
    if (range.samples()) {
      step.due.push_back(step.owners.size());
      due.push_back(range);
    }
    step.owners.push_back(request.id);
  }
  const std::vector<SamplingRow> rows = sampling_rows(due);
  const Tensor logits = forward(make_batch(plan, rows), plan);
  if (rows.empty()) return step;
  upload_masks(due);
  step.tokens = sampler_->choose(logits.slice(0, 0, static_cast<int64_t>(rows.size())),
                                 language_->sampling(), rows);
  return step;
}

std::optional<StepInFlight> Engine::Implementation::launch_ahead(const StepInFlight& current) {
  if (!launches_ahead_) return std::nullopt;
  for (const RequestId owner : current.owners) {
    const OpenRequest* request = find(owner);
    const bool goes_on = request != nullptr && !request->preparation->constraint &&
                         request->writer->goes_on_freely();
    if (!goes_on) return std::nullopt;
  }
  const std::optional<StepPlan> plan = scheduler_.plan_ahead(current.plan);
  if (!plan) return std::nullopt;
  return launch(*plan);
}

void Engine::Implementation::collect(const StepInFlight& step) {
  std::vector<SampledToken> tokens;
  if (step.due.empty()) {
    model_.backend->synchronize();
  } else {
    tokens = sampler_->read(step.tokens);
  }
  const Clock::time_point now = Clock::now();
  const double milliseconds = milliseconds_between(std::max(step.begin, last_collected_), now);
  last_collected_ = now;
  const StepPlan& plan = step.plan;
  pacer_.observe_step(plan.num_decode_rows, plan.num_rows() - plan.num_decode_rows, milliseconds);

  std::vector<TokenRange> wanted;
  for (size_t i = 0; i < plan.ranges.size(); ++i) {
    if (find(step.owners[i]) != nullptr) wanted.push_back(plan.ranges[i]);
  }
  scheduler_.finish_ranges(wanted);
  for (const TokenRange& range : wanted) {
    OpenRequest& request = request_of(*range.sequence);
    if (!request.first_token) request.timings.prefill += milliseconds;
    drop_dead_pixels(request);
  }
  for (size_t i = 0; i < step.due.size(); ++i) {
    if (OpenRequest* request = find(step.owners[step.due[i]])) take_token(*request, tokens[i]);
  }
}

Tensor Engine::Implementation::forward(const Batch& batch, const StepPlan& plan) {
  // The shape of a decode step is its number of rows: see pad_for_replay().
  return plan.only_decodes() ? language_->replay(batch, kv_pool_.layers, activations_.decode)
                             : language_->forward(batch, kv_pool_.layers, activations_.prefill);
}

std::vector<SamplingRow> Engine::Implementation::sampling_rows(std::span<const TokenRange> ranges) {
  std::vector<SamplingRow> rows;
  for (const TokenRange& range : ranges) {
    const Sequence& sequence = *range.sequence;
    OpenRequest& request = request_of(sequence);
    if (request.sampling.has_penalties() && request.counts_filled_at != sequence.num_preemptions) {
      sampler_->start_line(sequence.line, sequence.tokens, sequence.num_prompt_tokens);
      request.counts_filled_at = sequence.num_preemptions;
    }
    rows.push_back({.settings = &request.sampling,
                    .token_index = range.first + range.count - sequence.num_prompt_tokens,
                    .line = sequence.line,
                    .has_mask = has_mask(request)});
  }
  return rows;
}

bool Engine::Implementation::has_mask(const OpenRequest& request) {
  return request.preparation->constraint || request.writer->forced_token() >= 0;
}

// Masks are computed while the device computes the logits.
void Engine::Implementation::upload_masks(std::span<const TokenRange> ranges) {
  std::vector<std::span<const uint32_t>> masks;
  for (const TokenRange& range : ranges) {
    OpenRequest& request = request_of(*range.sequence);
    if (has_mask(request)) masks.push_back(allowed_tokens(request));
  }
  sampler_->upload_masks(masks);
}

// What may come next: all, the one token that must, or what the grammar says. A grammar's own fault
// ends its request alone.
std::span<const uint32_t> Engine::Implementation::allowed_tokens(OpenRequest& request) {
  constexpr size_t kBits = 32;
  const TokenId forced = request.writer->forced_token();
  if (forced >= 0) {
    const auto id = static_cast<size_t>(forced);
    request.forced_mask.assign(
        (static_cast<size_t>(model_.files.config.text.vocab_size) + kBits - 1) / kBits, 0);
    request.forced_mask[id / kBits] = uint32_t{1} << (id % kBits);
    return request.forced_mask;
  }
  if (!request.preparation->constraint) return {};
  if (request.writer->is_reasoning()) return thinking_mask_;
  try {
    return request.preparation->constraint->mask();
  } catch (const Error& error) {
    request.preparation->error = error;
    return {};
  }
}

// Pixels whose embeddings exist, or whose tokens are computed, are not needed any more.
void Engine::Implementation::drop_dead_pixels(OpenRequest& request) {
  for (size_t i = 0; i < request.sequence.pictures.size(); ++i) {
    SequencePicture& picture = request.sequence.pictures[i];
    const bool is_encoded = picture.entry != nullptr && picture.entry->is_ready;
    if (!is_encoded && picture.end() > request.sequence.num_computed) continue;
    if (!picture.has_pixels) continue;
    picture.has_pixels = false;
    recycle_pixels(std::move(request.preparation->prompt.pictures[i].processed.pixels));
  }
}

}  // namespace glimpse
