// Every operation as plain loops in f32: the executable specification, and what CpuBackend falls
// back on. Split by family over reference_*.cpp.
#pragma once

#include <cstdlib>
#include <span>
#include <string>

#include "backend/backend.h"

namespace glimpse {

class ReferenceBackend : public Backend {
 public:
  [[nodiscard]] Device device() const override { return Device::cpu; }
  [[nodiscard]] std::string description() const override { return "reference (plain loops)"; }
  [[nodiscard]] Buffer allocate(int64_t num_bytes, std::string_view name) override;
  void upload(std::span<const std::byte> bytes, Tensor to) override;
  void download(Tensor from, std::span<std::byte> bytes) override;
  void zero(Tensor tensor) override;
  void synchronize() override {}
  [[nodiscard]] LinearWeight prepare(std::span<const LinearPart> parts, LinearLayout layout,
                                     Arena& arena) override;
  [[nodiscard]] Tensor prepare(Tensor host, DType dtype, Arena& arena) override;

 protected:
  void do_copy(Tensor from, Tensor to) override;
  void do_gather_rows(Tensor table, Tensor indices, Tensor out) override;
  void do_begin_step(const StepBeginning& from, Tensor hidden, Tensor cosines,
                     Tensor sines) override;
  void do_scatter_rows(Tensor rows, Tensor indices, Tensor out) override;
  void do_add_rows(Tensor rows, Tensor indices, Tensor out) override;
  void do_add(Tensor a, Tensor b, Tensor out) override;
  void do_blend_rows(Tensor table, Tensor indices, Tensor weights, Tensor out) override;
  void do_cut_patches(Tensor pixels, Tensor table, const PatchOrder& order, Tensor out) override;
  void do_linear(Tensor x, const LinearWeight& weight, Tensor out,
                 const QuantizedActivations& quantized) override;
  void do_linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                     const QuantizedActivations& quantized) override;
  void do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch, Tensor out,
                          const QuantizedActivations& quantized) override;
  void do_rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out) override;
  void do_rms_norm_rows(Tensor x, Tensor indices, Tensor weight, float epsilon,
                        Tensor out) override;
  void do_layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon, Tensor out) override;
  void do_silu_mul(Tensor gate_up, Tensor out) override;
  void do_gelu(Tensor x, GeluKind kind, Tensor out) override;
  void do_rotary_table(Tensor positions, Tensor inverse_frequencies, Tensor axes, Tensor cosines,
                       Tensor sines) override;
  void do_rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) override;
  void do_store_kv(Tensor k, Tensor v, Tensor slots, const PagedKv& kv) override;
  void do_attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans, Tensor out) override;
  void do_attend_packed(Tensor q, Tensor k, Tensor v, std::span<const int64_t> segment_begin,
                        Tensor out) override;
  void do_sample(Tensor logits, const SamplingRows& rows, Tensor ids, Tensor log_probs,
                 Tensor reported_ids) override;
  void do_top_log_probs(Tensor logits, Tensor ids, Tensor log_probs) override;
  void do_count_tokens(Tensor ids, Tensor line, Tensor counts) override;

  /// log(sum of exp(logits)): the normaliser of log-probabilities.
  [[nodiscard]] virtual float log_sum_exp(std::span<const float> logits) const;
};

}  // namespace glimpse
