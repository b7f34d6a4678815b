// Keeps the engine: loads it when it is needed, lends it to requests, and gives its memory back
// after an idle time.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "glimpse/engine.h"

namespace glimpse {

/// Thread-safe.
class EngineHost {
 public:
  using Loader = std::function<std::unique_ptr<Engine>()>;

  /// The engine stays loaded while a lease is alive. May be dropped on any thread, the engine's
  /// own too: dropping never unloads.
  class Lease {
   public:
    explicit Lease(EngineHost& host);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    [[nodiscard]] Engine& engine() const { return engine_; }

   private:
    EngineHost& host_;
    Engine& engine_;
  };

  /// Loads at once, so that a bad model is known before the first request. Throws as `load` does.
  /// `idle_time` 0 keeps the engine for good.
  EngineHost(Loader load, std::chrono::milliseconds idle_time);
  ~EngineHost() { engine_.reset(); }  // its last callbacks still release leases
  EngineHost(const EngineHost&) = delete;
  EngineHost& operator=(const EngineHost&) = delete;

  /// Loads the engine if it was unloaded: blocks for that time. Throws as the loader does.
  [[nodiscard]] std::shared_ptr<Lease> lease() { return std::make_shared<Lease>(*this); }
  /// To be called every now and then; true when it unloaded. Waits for the engine's thread.
  bool unload_if_idle();

  // These answer at once, also while another thread loads or unloads.
  /// Facts of the model when it was last loaded.
  [[nodiscard]] ModelInfo model() const;
  /// Nothing while unloaded.
  [[nodiscard]] std::optional<EngineStatus> status() const;
  [[nodiscard]] bool is_loading() const;
  [[nodiscard]] std::chrono::milliseconds idle_time() const { return idle_time_; }

 private:
  // Loading and unloading happen outside the lock; their states keep others from doing either.
  enum class State { loaded, loading, unloading, unloaded };

  Engine& acquire();
  void release();
  void enter(State state);

  Loader load_;
  std::chrono::milliseconds idle_time_;
  mutable std::mutex mutex_;
  std::condition_variable state_changed_;
  State state_ = State::loaded;
  std::unique_ptr<Engine> engine_;  // while loaded
  ModelInfo model_;
  int num_leases_ = 0;
  std::chrono::steady_clock::time_point last_used_;
};

}  // namespace glimpse
