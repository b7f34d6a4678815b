// The bundled checkpoint, small and on one thread, for tests that need an engine that answers.
#pragma once

#include <memory>

#include "glimpse/engine.h"
#include "paths.h"

namespace glimpse::testing {

inline EngineOptions demo_options() {
  EngineOptions options;
  options.model = demo_model_dir().string();
  options.device = DeviceChoice::cpu;
  options.threads = 1;
  options.context = 256;
  return options;
}

inline std::unique_ptr<Engine> load_demo() {
  return std::make_unique<Engine>(demo_options());
}

}  // namespace glimpse::testing
