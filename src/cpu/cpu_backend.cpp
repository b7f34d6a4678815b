// The fast CPU backend: the reference's operations, the hot ones replaced by vector kernels that
// all threads share.
#include "cpu/fast_backend.h"

#include <algorithm>

#include "cpu/elements.h"
#include "cpu/kernels.h"

namespace glimpse {
namespace {

// Rows of one dispatch to a thread: enough that waking it costs little.
constexpr int64_t kElementsPerChunk = 16384;

int64_t rows_per_chunk(int64_t row_length) {
  return std::max<int64_t>(1, kElementsPerChunk / std::max<int64_t>(row_length, 1));
}

// One row as floats: the row itself, or a widened copy in `scratch`.
const float* read_row(const Tensor& x, int64_t i, std::vector<float>& scratch) {
  if (x.dtype() == DType::f32) return row_of<float>(x, i);
  scratch.resize(static_cast<size_t>(x.size(-1)));
  cpu::widen_row(row_of<BFloat16>(x, i), nullptr, x.size(-1), scratch.data());
  return scratch.data();
}

// Where a row of results is computed: in place, or in `scratch` until finish_row() rounds it.
float* begin_row(const Tensor& out, int64_t i, std::vector<float>& scratch) {
  if (out.dtype() == DType::f32) return row_of<float>(out, i);
  scratch.resize(static_cast<size_t>(out.size(-1)));
  return scratch.data();
}

void finish_row(const Tensor& out, int64_t i, const std::vector<float>& scratch) {
  if (out.dtype() == DType::f32) return;
  cpu::narrow_row(scratch.data(), out.size(-1), row_of<BFloat16>(out, i));
}

struct RowScratch {
  std::vector<float> in;
  std::vector<float> out;
};

}  // namespace

FastCpuBackend::FastCpuBackend(int num_threads) : pool_(num_threads) {}

std::string FastCpuBackend::description() const {
  return fmt::format("cpu ({}{}, {} thread{})", cpu::instruction_set(),
                     cpu::has_bf16_dot() ? " with bf16 products" : "", pool_.num_threads(),
                     pool_.num_threads() == 1 ? "" : "s");
}

template <typename Body>
void FastCpuBackend::for_rows(int64_t rows, int64_t row_length, const Body& body) {
  pool_.parallel_for(rows, rows_per_chunk(row_length), [&](int64_t first, int64_t last) {
    RowScratch scratch;
    for (int64_t i = first; i < last; ++i) body(i, scratch);
  });
}

void FastCpuBackend::do_cut_patches(Tensor pixels, Tensor table, const PatchOrder& order,
                                    Tensor out) {
  pool_.parallel_for(out.size(0), rows_per_chunk(out.size(1)), [&](int64_t first, int64_t last) {
    PatchOrder part = order;
    part.first += first;
    ReferenceBackend::do_cut_patches(pixels, table, part, out.slice(0, first, last - first));
  });
}

void FastCpuBackend::do_rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out) {
  for_rows(x.num_rows(), x.size(-1), [&](int64_t i, RowScratch& scratch) {
    const float* from = read_row(x, i, scratch.in);
    cpu::rms_norm(from, weight.data<float>(), epsilon, x.size(-1), begin_row(out, i, scratch.out));
    finish_row(out, i, scratch.out);
  });
}

void FastCpuBackend::do_layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon,
                                   Tensor out) {
  for_rows(x.num_rows(), x.size(-1), [&](int64_t i, RowScratch& scratch) {
    const float* from = read_row(x, i, scratch.in);
    cpu::layer_norm(from, weight.data<float>(), bias.data<float>(), epsilon, x.size(-1),
                    begin_row(out, i, scratch.out));
    finish_row(out, i, scratch.out);
  });
}

void FastCpuBackend::do_silu_mul(Tensor gate_up, Tensor out) {
  for_rows(out.size(0), out.size(1), [&](int64_t i, RowScratch& scratch) {
    const float* gate = read_row(gate_up, i, scratch.in);
    cpu::silu_mul(gate, gate + out.size(1), out.size(1), begin_row(out, i, scratch.out));
    finish_row(out, i, scratch.out);
  });
}

void FastCpuBackend::do_gelu(Tensor x, GeluKind kind, Tensor out) {
  for_rows(x.num_rows(), x.size(-1), [&](int64_t i, RowScratch& scratch) {
    const float* from = read_row(x, i, scratch.in);
    float* to = begin_row(out, i, scratch.out);
    if (from != to) std::copy_n(from, x.size(-1), to);
    if (kind == GeluKind::exact_erf) {
      cpu::gelu_erf(to, x.size(-1));
    } else {
      cpu::gelu_tanh(to, x.size(-1));
    }
    finish_row(out, i, scratch.out);
  });
}

void FastCpuBackend::do_rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) {
  // Token by token; each is a small tensor of its own to the reference.
  pool_.parallel_for(
      x.size(0), rows_per_chunk(x.size(1) * x.size(2)), [&](int64_t first, int64_t last) {
        const int64_t n = last - first;
        ReferenceBackend::do_rotate(x.slice(0, first, n), cosines.slice(0, first, n),
                                    sines.slice(0, first, n), out.slice(0, first, n));
      });
}

float FastCpuBackend::log_sum_exp(std::span<const float> logits) const {
  return cpu::log_sum_exp(logits.data(), static_cast<int64_t>(logits.size()));
}

std::unique_ptr<Backend> create_reference_backend() {
  return std::make_unique<ReferenceBackend>();
}

std::unique_ptr<Backend> create_cpu_backend(int num_threads) {
  return std::make_unique<FastCpuBackend>(num_threads);
}

}  // namespace glimpse
