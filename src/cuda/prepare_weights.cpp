#include "cuda/prepare_weights.h"

#include <cstring>
#include <vector>

#include "backend/weight_layout.h"

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

void fill(const StackedParts& stacked, StagingRing& ring) {
  const LinearPart& device = stacked.device;
  int64_t row = 0;
  for (const LinearPart& part : stacked.parts) {
    const int64_t count = part.weight.size(0);
    upload(part.weight, device.weight.dtype(), device.weight.slice(0, row, count).raw(), ring);
    if (!device.scales.empty()) {
      upload(part.scales, DType::f32,
             device.scales.slice(0, row / kScaleBlock, part.scales.size(0)).raw(), ring);
    }
    if (!device.bias.empty()) {
      const Tensor bias = device.bias.slice(0, row, count);
      part.bias.empty() ? upload_zeros(bias.num_bytes(), bias.raw(), ring)
                        : upload(part.bias, DType::f32, bias.raw(), ring);
    }
    row += count;
  }
}

}  // namespace

LinearWeight prepare_linear(std::span<const LinearPart> parts, Arena& arena, StagingRing& ring) {
  LinearWeight weight;
  for (const StackedParts& stacked : stack_parts(parts, arena)) {
    if (!arena.is_measuring()) fill(stacked, ring);
    weight.parts.push_back(stacked.device);
  }
  return weight;
}

Tensor prepare_table(const Tensor& host, DType dtype, Arena& arena, StagingRing& ring) {
  const Tensor table = carve_table(host, dtype, arena);
  if (!arena.is_measuring()) upload(host, dtype, table.raw(), ring);
  return table;
}

}  // namespace glimpse::cuda
