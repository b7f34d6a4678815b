// Brings single tensors from a checkpoint to a backend: what binding either tower consists of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/thread_pool.h"
#include "model/weight_store.h"
#include "model/weights.h"

namespace glimpse {

/// Not thread-safe. Store, backend, arena and options must outlive it.
class WeightBinder {
 public:
  WeightBinder(WeightStore& store, Backend& backend, Arena& arena, const BindOptions& options);

  /// A norm's weight or bias as f32.
  Tensor vector(const std::string& name, int64_t size);
  LayerNormWeights layer_norm(const std::string& module, int64_t size);
  Tensor table(const Tensor& host, DType dtype);
  LinearWeight linear(std::span<const LinearPart> parts, LinearLayout layout);
  LinearWeight linear(const std::string& module, int64_t out_features, int64_t in_features);
  /// The decoder's projections: as stored, or in block FP8 when the options ask for it. `names` of
  /// the parts stand in errors.
  LinearWeight projection(std::span<const LinearPart> parts, std::span<const std::string> names,
                          LinearLayout layout);

 private:
  using Copies = std::vector<std::vector<std::byte>>;

  LinearPart quantize(const LinearPart& part, const std::string& name, Copies& copies);
  Tensor take_for_codes(DType dtype, std::initializer_list<int64_t> shape, Copies& copies);
  void refuse_nan(const LinearPart& part);
  void finish(const Tensor& host);

  WeightStore& store_;
  Backend& backend_;
  Arena& arena_;
  const BindOptions& options_;
  ThreadPool pool_;
  int64_t done_bytes_ = 0;
};

}  // namespace glimpse
