// The reference's operations with the hot ones in vector kernels, on all threads.
#pragma once

#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cpu/reference_backend.h"

namespace glimpse {

class FastCpuBackend final : public ReferenceBackend {
 public:
  explicit FastCpuBackend(int num_threads);

  [[nodiscard]] std::string description() const override;

 protected:
  void do_cut_patches(Tensor pixels, Tensor table, const PatchOrder& order, Tensor out) override;
  void do_linear(Tensor x, const LinearWeight& weight, Tensor out,
                 const QuantizedActivations& quantized) override;
  void do_linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                     const QuantizedActivations& quantized) override;
  void do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch, Tensor out,
                          const QuantizedActivations& quantized) override;
  void do_rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out) override;
  void do_layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon, Tensor out) override;
  void do_silu_mul(Tensor gate_up, Tensor out) override;
  void do_gelu(Tensor x, GeluKind kind, Tensor out) override;
  void do_rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) override;
  void do_attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans, Tensor out) override;
  void do_attend_packed(Tensor q, Tensor k, Tensor v, std::span<const int64_t> segment_begin,
                        Tensor out) override;
  [[nodiscard]] float log_sum_exp(std::span<const float> logits) const override;

 private:
  template <typename Body>
  void for_rows(int64_t rows, int64_t row_length, const Body& body);
  void multiply(const Tensor& x, const LinearWeight& weight, const Tensor& out, bool add);
  /// FP8 parts of the weight multiply x rounded to FP8.
  void multiply_quantized(const Tensor& x, const LinearWeight& weight,
                          const QuantizedActivations& quantized, const Tensor& out, bool add);

  ThreadPool pool_;
};

}  // namespace glimpse
