// The safetensors container: 8 bytes of header length, a JSON header, then raw little-endian data.
// The header is hostile input: every offset, size and name is checked before a byte is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"

namespace glimpse {

/// One entry of a header; `bytes` points into the mapped file.
struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  // empty: a scalar
  std::span<const std::byte> bytes;

  [[nodiscard]] int64_t num_elements() const {
    return static_cast<int64_t>(bytes.size()) / bytes_of(dtype);
  }
};

/// Reads the header of a whole file in memory. `file_name` stands in the errors. Throws
/// Error(bad_model) naming the tensor and what is wrong with it, Error(unsupported) for a dtype
/// that Glimpse does not know.
[[nodiscard]] std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> file,
                                                          std::string_view file_name);

}  // namespace glimpse
