#include "model/weight_binder.h"

#include <atomic>

#include "model/quantize.h"

namespace glimpse {

WeightBinder::WeightBinder(WeightStore& store, Backend& backend, Arena& arena,
                           const BindOptions& options)
    : store_(store), backend_(backend), arena_(arena), options_(options) {
  if (!arena.is_measuring()) store.prefetch();
}

Tensor WeightBinder::vector(const std::string& name, int64_t size) {
  return table(store_.get(name, {size}, {DType::f32, DType::f16, DType::bf16}), DType::f32);
}

LayerNormWeights WeightBinder::layer_norm(const std::string& module, int64_t size) {
  return {vector(module + ".weight", size), vector(module + ".bias", size)};
}

Tensor WeightBinder::table(const Tensor& host, DType dtype) {
  const Tensor tensor = backend_.prepare(host, dtype, arena_);
  finish(host);
  return tensor;
}

LinearWeight WeightBinder::linear(std::span<const LinearPart> parts, LinearLayout layout) {
  for (const LinearPart& part : parts) refuse_nan(part);
  const LinearWeight weight = backend_.prepare(parts, layout, arena_);
  for (const LinearPart& part : parts) finish(part.weight);
  return weight;
}

LinearWeight WeightBinder::linear(const std::string& module, int64_t out_features,
                                  int64_t in_features) {
  const LinearPart part = store_.linear_part(module, out_features, in_features);
  return linear({&part, 1}, LinearLayout::plain);
}

LinearWeight WeightBinder::projection(std::span<const LinearPart> parts,
                                      std::span<const std::string> names, LinearLayout layout) {
  if (!options_.quantize_to_fp8 || parts.front().weight.dtype() == DType::f8_e4m3) {
    return linear(parts, layout);
  }
  Copies copies;
  std::vector<LinearPart> quantized;
  for (size_t i = 0; i < parts.size(); ++i) {
    quantized.push_back(quantize(parts[i], names[i], copies));
  }
  const LinearWeight weight = backend_.prepare(quantized, layout, arena_);
  if (!copies.empty()) backend_.synchronize();
  for (const LinearPart& part : parts) finish(part.weight);
  return weight;
}

// A backend on host memory works on the codes where they are: they belong into the arena. Any other
// copies them, so that they live in `copies` for as long as that takes.
Tensor WeightBinder::take_for_codes(DType dtype, std::initializer_list<int64_t> shape,
                                    Copies& copies) {
  if (arena_.device() == Device::cpu) return arena_.allocate(dtype, shape);
  const Tensor layout(nullptr, dtype, Device::cpu, shape);
  if (arena_.is_measuring()) return layout;
  copies.emplace_back(static_cast<size_t>(layout.num_bytes()));
  return {copies.back().data(), dtype, Device::cpu, shape};
}

LinearPart WeightBinder::quantize(const LinearPart& part, const std::string& name, Copies& copies) {
  const int64_t out = part.weight.size(0);
  const int64_t in = part.weight.size(1);
  LinearPart result;
  result.weight = take_for_codes(DType::f8_e4m3, {out, in}, copies);
  result.scales = take_for_codes(
      DType::f32, {(out + kScaleBlock - 1) / kScaleBlock, (in + kScaleBlock - 1) / kScaleBlock},
      copies);
  result.bias = part.bias;
  if (arena_.is_measuring()) return result;
  const std::span<std::byte> codes{result.weight.raw(),
                                   static_cast<size_t>(result.weight.num_bytes())};
  quantize_blocks(part.weight, name, pool_, codes, result.scales.span<float>());
  return result;
}

void WeightBinder::refuse_nan(const LinearPart& part) {
  if (part.weight.dtype() != DType::f8_e4m3 || arena_.is_measuring()) return;
  constexpr int64_t kGrain = 1 << 20;
  const auto* codes = reinterpret_cast<const uint8_t*>(part.weight.raw());
  std::atomic<bool> has_nan = false;
  pool_.parallel_for(part.weight.num_bytes(), kGrain, [&](int64_t first, int64_t last) {
    uint8_t found = 0;
    for (int64_t i = first; i < last; ++i) found |= (codes[i] & 0x7FU) == 0x7FU ? 1 : 0;
    if (found != 0) has_nan = true;
  });
  if (!has_nan) return;
  throw Error(ErrorCode::bad_model,
              fmt::format("tensor '{}' holds NaN", store_.name_of_view(part.weight)),
              "the checkpoint is damaged: download it again");
}

void WeightBinder::finish(const Tensor& host) {
  if (arena_.is_measuring()) return;
  if (options_.releases_pages && backend_.device() != Device::cpu) store_.release_pages(host);
  done_bytes_ += host.num_bytes();
  if (options_.on_progress) options_.on_progress(done_bytes_);
}

}  // namespace glimpse
