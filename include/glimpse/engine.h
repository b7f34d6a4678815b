#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "glimpse/options.h"
#include "glimpse/request.h"

namespace glimpse {

/// Facts about the loaded model.
struct ModelInfo {
  std::string name;  ///< last part of the directory, or the repo id
  std::string directory;
  std::string architecture;   ///< "Qwen3VLForConditionalGeneration"
  std::string device;         ///< the backend's description
  std::string arithmetic;     ///< "exact" or "fast"
  std::string weight_format;  ///< "fp8", "bf16", ...
  int64_t num_parameters = 0;
  int64_t context = 0;
  int max_sequences = 0;
  int64_t min_pixels = 0;
  int64_t max_pixels = 0;
  int64_t vocabulary_size = 0;
  int32_t image_token_id = -1;  ///< -1: a text-only model
  bool has_tokenizer = true;    ///< without one only Request::raw_tokens can be asked
  double load_milliseconds = 0;
};

/// One line of the memory plan, as it really is.
struct MemoryItem {
  std::string name;
  int64_t bytes = 0;
};

/// A snapshot; numbers since the start unless they say otherwise.
struct EngineStatus {
  bool healthy = true;
  std::string fault;  ///< why not
  int waiting = 0;    ///< requests now
  int running = 0;
  int64_t requests_finished = 0;
  int64_t requests_failed = 0;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double completion_tokens_per_second = 0;  ///< of all answers, over the last ten seconds
  int64_t prefix_cache_hit_tokens = 0;
  int64_t picture_cache_hits = 0;
  int64_t pictures = 0;
  double vision_milliseconds = 0;
  double first_token_milliseconds = 0;  ///< summed over finished requests
  int64_t preemptions = 0;
  int64_t kv_pages_total = 0;
  int64_t kv_pages_used = 0;
  int64_t steps = 0;
  double longest_step_milliseconds = 0;
  std::vector<MemoryItem> memory;
  int64_t resident_bytes = 0;       ///< of the process, now
  int64_t peak_resident_bytes = 0;  ///< of the process, ever
};

using RequestId = uint64_t;
using EventCallback = std::function<void(const Event&)>;

/// Runs one model for many requests at once. Thread-safe: submit(), cancel(), answer() and
/// status() may be called from any thread. Callbacks of one request arrive in order on the engine's
/// thread, end with exactly one `finished` or `failed` event, and must return quickly.
///
/// Example:
/// @code
/// glimpse::Engine engine({});                            // the bundled checkpoint
/// std::cout << engine.caption("cat.jpg") << "\n";
/// @endcode
class Engine {
 public:
  /// Loads the model and takes all memory. Throws Error when it cannot, or does not fit.
  explicit Engine(const EngineOptions& options);
  /// Cancels what is open and waits for the engine's thread.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues a request. Throws Error(invalid_argument) for options that cannot be used and
  /// Error(overloaded) when the queue is full; everything later arrives as a `failed` event.
  RequestId submit(Request request, EventCallback on_event);
  /// Ends a request at once; its last event says cancelled. Unknown ids are ignored.
  void cancel(RequestId id);

  /// submit() and wait. `on_event` sees the events as they come. Throws the request's Error.
  Answer answer(Request request, const EventCallback& on_event = {});
  /// Describes one picture. Throws as answer() does.
  std::string caption(const std::filesystem::path& picture,
                      std::string_view prompt = "Describe this image in detail.");

  [[nodiscard]] const ModelInfo& model() const;
  [[nodiscard]] EngineStatus status() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

/// Where the bundled demo checkpoint is; Error(not_found) when it was not installed.
[[nodiscard]] std::filesystem::path bundled_model_directory();

}  // namespace glimpse
