// Headers of weight files.
#include <cstddef>
#include <cstdint>
#include <span>

#include "glimpse/error.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> file{reinterpret_cast<const std::byte*>(data), size};
  try {
    for (const glimpse::StoredTensor& tensor : glimpse::parse_safetensors(file, "fuzz")) {
      // Whatever was accepted lies inside the file, and its size is that of its elements.
      const bool is_inside =
          tensor.bytes.empty() || (tensor.bytes.data() >= file.data() &&
                                   tensor.bytes.data() + tensor.bytes.size() <= file.data() + size);
      int64_t elements = 1;
      for (const int64_t dimension : tensor.shape) elements *= dimension;
      if (!is_inside || elements != tensor.num_elements()) __builtin_trap();
    }
  } catch (const glimpse::Error&) {
  }
  return 0;
}
