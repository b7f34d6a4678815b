#include "server/engine_host.h"

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
  const std::lock_guard lock(mutex_);
  if (!engine_) {
    engine_ = load_();
    model_ = engine_->model();
  }
  ++num_leases_;
  return *engine_;
}

void EngineHost::release() {
  const std::lock_guard lock(mutex_);
  --num_leases_;
  last_used_ = std::chrono::steady_clock::now();
}

bool EngineHost::unload_if_idle() {
  const std::lock_guard lock(mutex_);
  if (idle_time_.count() <= 0 || !engine_ || num_leases_ > 0) return false;
  if (std::chrono::steady_clock::now() - last_used_ < idle_time_) return false;
  engine_.reset();
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

}  // namespace glimpse
