// The CPU backend: plain loops that specify every operation (reference.cpp) and, above them, the
// fast versions of the hot ones, chosen for the machine at run time.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace glimpse {

/// `num_threads` 0 means one per usable core.
[[nodiscard]] std::unique_ptr<Backend> create_cpu_backend(int num_threads);

/// The executable specification: every operation as plain loops, one thread. The oracle of the
/// operation tests.
[[nodiscard]] std::unique_ptr<Backend> create_reference_backend();

}  // namespace glimpse
