#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace glimpse {

enum class DeviceChoice {
  automatic,  ///< CUDA where it works, else the CPU
  cpu,
  cuda,
};

/// How numbers are rounded; docs/numerics.md has the details.
enum class Arithmetic {
  automatic,  ///< exact on the CPU, fast on CUDA
  exact,      ///< F32 throughout: the same tokens as transformers in F32
  fast,       ///< BF16 operands, F32 accumulation and residual
  w8a8,       ///< fast, but FP8 weights multiply activations rounded to FP8
};

enum class KvFormat { automatic, f32, bf16, fp8 };

/// Where the vision tower's weights live on a GPU.
enum class VisionResidency {
  automatic,
  resident,   ///< in device memory
  on_demand,  ///< in host memory, streamed block by block when a picture comes
};

/// Whether a step begins before the host has seen the tokens of the step before it, where it is
/// certain what it will be. It changes no answer.
enum class LaunchAhead {
  automatic,  ///< on a GPU, which would wait for the host otherwise
  never,
  always,
};

/// What is being loaded, for a progress bar. `total_bytes` is constant for one load.
struct LoadProgress {
  std::string stage;  ///< "reading weights", "warming up"
  int64_t done_bytes = 0;
  int64_t total_bytes = 0;
};

/// Everything that is fixed when an engine starts. 0 or an empty value means: choose for me.
struct EngineOptions {
  /// Checkpoint directory, or a Hugging Face repo id found in the local cache. Empty: the bundled
  /// demo checkpoint.
  std::string model;
  DeviceChoice device = DeviceChoice::automatic;
  int cuda_device = 0;
  int threads = 0;  ///< CPU threads of the backend; 0: one per usable core
  Arithmetic arithmetic = Arithmetic::automatic;
  int64_t context = 0;           ///< most tokens of one sequence, prompt and answer; 0: up to 4096
  int max_sequences = 0;         ///< sequences computed together; 0: 1 (a server chooses more)
  bool fewer_sequences = false;  ///< a GPU short of memory may compute fewer together
  int64_t kv_tokens = 0;         ///< tokens the KV cache holds in all; 0: context * max_sequences
  int64_t min_pixels = 0;        ///< smallest area a picture is scaled to; 0: the checkpoint's
  int64_t max_pixels = 0;        ///< largest; 0: the checkpoint's, lowered to what memory allows
  int64_t memory_cap_bytes = 0;  ///< hard cap on device memory; 0: what is free
  KvFormat kv_format = KvFormat::automatic;
  VisionResidency vision = VisionResidency::automatic;
  bool quantize_to_fp8 = false;     ///< store BF16 text linears as block FP8
  int64_t picture_cache_bytes = 0;  ///< budget for embeddings of pictures seen before
  int picture_threads = 0;          ///< workers that decode and resize pictures; 0: choose
  LaunchAhead launch_ahead = LaunchAhead::automatic;
  int max_queue = 256;  ///< requests waiting beyond this are refused (overloaded)
  /// A step that takes longer is stuck, as on a GPU that hangs. 0: 60 on a GPU, no limit on the
  /// CPU.
  double stuck_step_seconds = 0;
  /// Called on the constructing thread while loading.
  std::function<void(const LoadProgress&)> on_progress;
  /// One-sentence announcements: automatic choices, warnings. Called from any engine thread.
  std::function<void(const std::string&)> on_notice;
  /// Called on a thread of its own when a step is stuck, after every open request has failed with
  /// the same sentence. The engine cannot be destroyed before the step returns, so a handler ends
  /// the process; without one, it ends with kStuckExitCode.
  std::function<void(const std::string&)> on_stuck;
};

/// The exit code of a process whose GPU hangs.
inline constexpr int kStuckExitCode = 9;

/// How tokens are chosen. An unset field takes the checkpoint's generation_config.json value.
struct SamplingOptions {
  std::optional<float> temperature;         ///< 0: always the most likely token; at most 100
  std::optional<int> top_k;                 ///< 0: all
  std::optional<float> top_p;               ///< (0, 1]
  std::optional<float> min_p;               ///< [0, 1]
  std::optional<float> repetition_penalty;  ///< (0, 10]; over prompt and answer
  float presence_penalty = 0;               ///< [-2, 2]; over the answer, as OpenAI defines it
  float frequency_penalty = 0;              ///< [-2, 2]
  std::optional<uint64_t> seed;             ///< equal seeds give equal answers; unset: a fresh one
  int max_tokens = 256;                     ///< most tokens of the answer
  std::vector<std::string> stop;            ///< the answer ends before any of these
  bool ignore_eos = false;                  ///< go on after the end-of-turn token, to max_tokens
  int logprobs = -1;         ///< report the chosen token's and this many alternatives'; -1: off
  bool loop_guard = true;    ///< end an answer whose tail repeats itself
  int thinking_budget = -1;  ///< most tokens of reasoning (Thinking models); -1: no limit
};

}  // namespace glimpse
