#include "cpu/cpu_backend.h"

#include "cpu/reference_backend.h"

namespace glimpse {

std::unique_ptr<Backend> create_reference_backend() {
  return std::make_unique<ReferenceBackend>();
}

std::unique_ptr<Backend> create_cpu_backend(int) {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace glimpse
