// Inside Engine: callers' threads put messages into the inbox, workers prepare prompts, and one
// thread owns every tensor and runs step() until nobody is left.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/worker_pool.h"
#include "glimpse/engine.h"
#include "model/language_model.h"
#include "model/vision_encoder.h"
#include "runtime/constraint_factory.h"
#include "runtime/kv_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/open_request.h"
#include "runtime/pacer.h"
#include "runtime/picture_cache.h"
#include "runtime/recent_rate.h"
#include "runtime/sampler.h"
#include "runtime/scheduler.h"
#include "runtime/watchdog.h"

namespace glimpse {

/// A step that was launched. Requests may end before it does: nobody wants their part then.
struct StepInFlight {
  StepPlan plan;
  std::vector<RequestId> owners;  // of the plan's ranges
  std::vector<size_t> due;        // ranges that end in a token to choose
  ChosenTokens tokens;            // theirs
  Clock::time_point begin;
};

class Engine::Implementation {
 public:
  explicit Implementation(const EngineOptions& options);
  ~Implementation();

  // Any thread.
  RequestId submit(Request request, EventCallback on_event);
  void cancel(RequestId id);
  [[nodiscard]] const ModelInfo& model_info() const { return model_info_; }
  [[nodiscard]] EngineStatus status() const;

 private:
  using Message = std::function<void()>;

  // ---- the engine's thread (engine.cpp) -----------------------------------------------------
  void run();
  /// Runs the messages of the inbox, waiting for one when `has_work` is false. False: stop.
  bool handle_messages(bool has_work);
  /// Plans a step unless one is under way, launches it, and the one after it where that is certain,
  /// and collects the first one's tokens. False when there was nothing to compute.
  bool step();
  void run_vision(const StepPlan& plan);
  void begin_vision(const PictureOf& picture);
  [[nodiscard]] StepInFlight launch(const StepPlan& plan);
  /// The step after `current`, begun before anybody has seen the tokens of `current`. Empty where
  /// it is not certain what it will be.
  [[nodiscard]] std::optional<StepInFlight> launch_ahead(const StepInFlight& current);
  /// Waits for a step and gives its tokens to the requests that are still open.
  void collect(const StepInFlight& step);
  [[nodiscard]] Tensor forward(const Batch& batch, const StepPlan& plan);
  [[nodiscard]] std::vector<SamplingRow> sampling_rows(std::span<const TokenRange> ranges);
  [[nodiscard]] static bool has_mask(const OpenRequest& request);
  void upload_masks(std::span<const TokenRange> ranges);
  [[nodiscard]] std::span<const uint32_t> allowed_tokens(OpenRequest& request);
  void drop_dead_pixels(OpenRequest& request);

  // ---- from plan to batch (engine_batch.cpp) ------------------------------------------------
  [[nodiscard]] Batch make_batch(const StepPlan& plan, std::span<const SamplingRow> rows);
  void add_range(const TokenRange& range, Batch& batch);
  void add_pictures(const TokenRange& range, Batch& batch);
  /// Fills a decode batch up to a shape that many steps share, so that few are recorded.
  void pad_for_replay(int64_t rows, Batch& batch) const;
  /// Records and runs a decode step of every size that will be: after it, no step takes memory.
  void warm_up();

  // ---- requests (engine_requests.cpp) -------------------------------------------------------
  void post(Message message);
  void accept(std::unique_ptr<OpenRequest> request);
  void start_preparations();
  void prepare(std::shared_ptr<Preparation> preparation, RequestId id);
  void finish_preparation(RequestId id, Preparation preparation);
  void want_pixels(const PictureOf& picture);
  void take_token(OpenRequest& request, const SampledToken& sampled);
  [[nodiscard]] std::optional<TokenLogProbs> log_probs_of(const OpenRequest& request,
                                                          const SampledToken& sampled) const;
  void finish(OpenRequest& request, FinishReason reason);
  void fail(OpenRequest& request, const Error& error);
  void fail_all(const Error& error);
  /// Sends the last event and forgets the request.
  void close(OpenRequest& request, Event event);
  /// Calls the caller, unless the watchdog has spoken to everyone.
  void emit(OpenRequest& request, const Event& event);
  [[nodiscard]] OpenRequest* find(RequestId id);
  [[nodiscard]] OpenRequest& request_of(const Sequence& sequence);
  void publish_status();
  /// On the watchdog's thread: tells every caller, and ends the process.
  void report_stuck();

  Clock::time_point load_begin_ = Clock::now();
  EngineOptions options_;
  LoadedModel model_;
  ModelInfo model_info_;
  ConstraintFactory constraints_{model_};  // the workers'

  // Memory, exactly as planned.
  std::optional<Arena> kv_arena_;
  std::optional<Arena> activations_arena_;
  std::optional<Arena> visual_store_arena_;
  std::optional<Arena> tables_arena_;

  // Owned by the engine's thread.
  KvPool kv_pool_;
  StepActivations activations_;
  VisualTokens visual_store_;
  std::optional<VisionWeightStream> vision_stream_;  // with vision weights on demand
  std::optional<VisionEncoder> vision_;
  std::optional<LanguageModel> language_;
  std::optional<Sampler> sampler_;
  KvCache kv_cache_;
  PictureCache picture_cache_;
  Scheduler scheduler_;
  Pacer pacer_;
  std::map<RequestId, std::unique_ptr<OpenRequest>> requests_;
  std::deque<std::pair<RequestId, std::shared_ptr<Preparation>>> to_prepare_;
  int num_preparing_ = 0;
  bool launches_ahead_ = false;
  std::optional<StepInFlight> in_flight_;
  Clock::time_point last_collected_;
  std::optional<RequestId> encoding_for_;  // whose picture is in the vision tower
  int64_t encoding_patches_ = 0;
  TokenId think_begin_ = -1;
  TokenId think_end_ = -1;
  TokenMask thinking_mask_;  // of answers that have a form: a thought may not end them
  EngineStatus counters_;

  // Shared with callers and workers.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Message> inbox_;
  EngineStatus status_;
  RecentRate recent_tokens_;
  int num_open_ = 0;
  RequestId next_id_ = 1;
  bool stopping_ = false;
  bool is_stuck_ = false;
  std::map<RequestId, EventCallback> listeners_;  // of open requests
  RequestId called_ = 0;                          // whose callback is running; 0: none

  // Last: their threads use everything above.
  std::optional<Watchdog> watchdog_;
  std::optional<WorkerPool> workers_;
  std::thread thread_;
};

}  // namespace glimpse
