#include "server/engine_host.h"

#include <utility>

namespace glimpse {

EngineHost::Lease::Lease(EngineHost& host) : host_(host), engine_(host.acquire()) {}

EngineHost::Lease::~Lease() {
  host_.release();
}

EngineHost::EngineHost(Loader load, std::chrono::milliseconds idle_time)
    : load_(std::move(load)),
      idle_time_(idle_time),
      engine_(load_()),
      model_(engine_->model()),
      last_used_(std::chrono::steady_clock::now()) {}

Engine& EngineHost::acquire() {
  std::unique_lock lock(mutex_);
  state_changed_.wait(lock,
                      [this] { return state_ == State::loaded || state_ == State::unloaded; });
  if (state_ == State::unloaded) {
    state_ = State::loading;
    lock.unlock();
    std::unique_ptr<Engine> engine;
    try {
      engine = load_();
    } catch (...) {
      enter(State::unloaded);  // whoever waits tries again
      throw;
    }
    lock.lock();
    engine_ = std::move(engine);
    model_ = engine_->model();
    state_ = State::loaded;
    state_changed_.notify_all();
  }
  ++num_leases_;
  return *engine_;
}

void EngineHost::enter(State state) {
  const std::lock_guard lock(mutex_);
  state_ = state;
  state_changed_.notify_all();
}

void EngineHost::release() {
  const std::lock_guard lock(mutex_);
  --num_leases_;
  last_used_ = std::chrono::steady_clock::now();
}

bool EngineHost::unload_if_idle() {
  std::unique_ptr<Engine> idle;
  {
    const std::lock_guard lock(mutex_);
    if (idle_time_.count() <= 0 || state_ != State::loaded || num_leases_ > 0) return false;
    if (std::chrono::steady_clock::now() - last_used_ < idle_time_) return false;
    state_ = State::unloading;
    idle = std::move(engine_);
  }
  idle.reset();
  enter(State::unloaded);
  return true;
}

ModelInfo EngineHost::model() const {
  const std::lock_guard lock(mutex_);
  return model_;
}

std::optional<EngineStatus> EngineHost::status() const {
  const std::lock_guard lock(mutex_);
  if (!engine_) return std::nullopt;
  return engine_->status();
}

bool EngineHost::is_loading() const {
  const std::lock_guard lock(mutex_);
  return state_ == State::loading;
}

}  // namespace glimpse
