#include "backend/weight_layout.h"

namespace glimpse {
namespace {

DType stored_dtype(DType dtype) {
  return dtype == DType::f8_e4m3 ? dtype : DType::bf16;
}

int64_t blocks_of(int64_t features) {
  return (features + kScaleBlock - 1) / kScaleBlock;
}

// How many of `parts` become one matrix: those before a change of dtype, or before scale blocks
// would no longer begin where a part begins.
size_t joined_parts(std::span<const LinearPart> parts) {
  const DType dtype = stored_dtype(parts.front().weight.dtype());
  int64_t rows = 0;
  size_t count = 0;
  for (const LinearPart& part : parts) {
    if (stored_dtype(part.weight.dtype()) != dtype) break;
    if (dtype == DType::f8_e4m3 && rows % kScaleBlock != 0) break;
    rows += part.weight.size(0);
    ++count;
  }
  return count;
}

LinearPart carve(std::span<const LinearPart> parts, Arena& arena) {
  const DType dtype = stored_dtype(parts.front().weight.dtype());
  const int64_t in_features = parts.front().weight.size(1);
  int64_t rows = 0;
  bool has_bias = false;
  for (const LinearPart& part : parts) {
    rows += part.weight.size(0);
    has_bias = has_bias || !part.bias.empty();
  }
  LinearPart device;
  device.weight = arena.allocate(dtype, {rows, in_features});
  if (dtype == DType::f8_e4m3) {
    device.scales = arena.allocate(DType::f32, {blocks_of(rows), blocks_of(in_features)});
  }
  if (has_bias) device.bias = arena.allocate(DType::f32, {rows});
  return device;
}

}  // namespace

std::vector<StackedParts> stack_parts(std::span<const LinearPart> parts, Arena& arena) {
  std::vector<StackedParts> result;
  while (!parts.empty()) {
    const size_t count = joined_parts(parts);
    result.push_back({parts.first(count), carve(parts.first(count), arena)});
    parts = parts.subspan(count);
  }
  return result;
}

Tensor carve_table(const Tensor& host, DType dtype, Arena& arena) {
  return host.rank() == 1 ? arena.allocate(dtype, {host.size(0)})
                          : arena.allocate(dtype, {host.num_rows(), host.size(-1)});
}

}  // namespace glimpse
