#include "cuda/prepare_weights.h"

#include <cstring>
#include <vector>

namespace glimpse::cuda {
namespace {

template <typename To>
To convert(float x) {
  if constexpr (std::is_same_v<To, float>) {
    return x;
  } else {
    return to_bfloat16(x);
  }
}

/// Elements of `host` to `device`, converted to `dtype`.
void upload(const Tensor& host, DType dtype, std::byte* device, StagingRing& ring) {
  check(host.is_contiguous() && host.device() == Device::cpu, "a weight is not in host memory");
  if (host.dtype() == dtype) {
    ring.upload({host.raw(), static_cast<size_t>(host.num_bytes())}, device);
    return;
  }
  check(host.dtype() != DType::f8_e4m3, "FP8 weights are not converted");
  dispatch_weight(host.dtype(), [&]<typename From>() {
    dispatch_activation(dtype, [&]<typename To>() {
      const auto fill = [&](int64_t first, int64_t count, std::byte* bytes) {
        const From* from = host.data<From>() + first;
        To* to = reinterpret_cast<To*>(bytes);
        for (int64_t i = 0; i < count; ++i) to[i] = convert<To>(to_float(from[i]));
      };
      ring.upload(host.num_elements(), bytes_of(dtype), device, fill);
    });
  });
}

void upload_zeros(int64_t num_bytes, std::byte* device, StagingRing& ring) {
  ring.upload(num_bytes, 1, device, [](int64_t, int64_t count, std::byte* to) {
    std::memset(to, 0, static_cast<size_t>(count));
  });
}

DType stored_dtype(DType dtype) {
  return dtype == DType::f8_e4m3 ? dtype : DType::bf16;
}

int64_t rows_of_scales(int64_t rows) {
  return (rows + kScaleBlock - 1) / kScaleBlock;
}

/// How many of `parts` become one matrix: those before a change of dtype, or before scale blocks
/// would no longer begin where a part begins.
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

LinearPart join(std::span<const LinearPart> parts, Arena& arena, StagingRing& ring) {
  const DType dtype = stored_dtype(parts.front().weight.dtype());
  const int64_t in_features = parts.front().weight.size(1);
  int64_t rows = 0;
  bool has_bias = false;
  for (const LinearPart& part : parts) {
    rows += part.weight.size(0);
    has_bias = has_bias || !part.bias.empty();
  }
  LinearPart result;
  result.weight = arena.allocate(dtype, {rows, in_features});
  if (dtype == DType::f8_e4m3) {
    result.scales = arena.allocate(DType::f32, {rows_of_scales(rows), rows_of_scales(in_features)});
  }
  if (has_bias) result.bias = arena.allocate(DType::f32, {rows});
  if (arena.is_measuring()) return result;
  int64_t row = 0;
  for (const LinearPart& part : parts) {
    const int64_t count = part.weight.size(0);
    upload(part.weight, dtype, result.weight.slice(0, row, count).raw(), ring);
    if (dtype == DType::f8_e4m3) {
      const int64_t first = row / kScaleBlock;
      upload(part.scales, DType::f32, result.scales.slice(0, first, rows_of_scales(count)).raw(),
             ring);
    }
    if (has_bias) {
      const Tensor bias = result.bias.slice(0, row, count);
      part.bias.empty() ? upload_zeros(bias.num_bytes(), bias.raw(), ring)
                        : upload(part.bias, DType::f32, bias.raw(), ring);
    }
    row += count;
  }
  return result;
}

}  // namespace

LinearWeight prepare_linear(std::span<const LinearPart> parts, Arena& arena, StagingRing& ring) {
  LinearWeight weight;
  while (!parts.empty()) {
    const size_t count = joined_parts(parts);
    weight.parts.push_back(join(parts.first(count), arena, ring));
    parts = parts.subspan(count);
  }
  return weight;
}

Tensor prepare_table(const Tensor& host, DType dtype, Arena& arena, StagingRing& ring) {
  const Tensor table = host.rank() == 1 ? arena.allocate(dtype, {host.size(0)})
                                        : arena.allocate(dtype, {host.num_rows(), host.size(-1)});
  if (!arena.is_measuring()) upload(host, dtype, table.raw(), ring);
  return table;
}

}  // namespace glimpse::cuda
