// y = x W^T + b over the parts of a weight. In f32 an FP8 value is widened and scaled first; with
// bf16 activations the scale multiplies the f32 sum of its 128 columns, as the fast kernels do.
#include <algorithm>
#include <vector>

#include "cpu/elements.h"
#include "cpu/quantize_activations.h"
#include "cpu/reference_backend.h"

namespace glimpse {
namespace {

template <typename X, typename W>
float dot(const X* x, const W* w, const float* scales, int64_t columns) {
  float sum = 0;
  for (int64_t first = 0; first < columns; first += kScaleBlock) {
    const int64_t last = std::min(first + kScaleBlock, columns);
    const float scale = scales != nullptr ? scales[first / kScaleBlock] : 1.0F;
    if constexpr (std::is_same_v<X, float>) {
      for (int64_t j = first; j < last; ++j) sum += x[j] * (to_float(w[j]) * scale);
    } else {
      float block = 0;
      for (int64_t j = first; j < last; ++j) {
        block += to_float(x[j]) * to_float(to_bfloat16(to_float(w[j])));
      }
      sum += block * scale;
    }
  }
  return sum;
}

/// The same of a row that was quantised: one scale of x for each row of `x_scales`.
float dot(const Float8E4M3* x, const Tensor& x_scales, int64_t t, const Float8E4M3* w,
          const float* scales, int64_t columns) {
  float sum = 0;
  for (int64_t first = 0; first < columns; first += kScaleBlock) {
    const int64_t block = first / kScaleBlock;
    float products = 0;
    for (int64_t j = first; j < std::min(first + kScaleBlock, columns); ++j) {
      products += to_float(x[j]) * to_float(w[j]);
    }
    sum += products * row_of<float>(x_scales, block)[t] * scales[block];
  }
  return sum;
}

template <bool kAdd>
void multiply_quantized(const QuantizedActivations& x, const LinearPart& part, const Tensor& out) {
  dispatch_activation(out.dtype(), [&]<typename To>() {
    for (int64_t t = 0; t < out.size(0); ++t) {
      To* to = row_of<To>(out, t);
      for (int64_t r = 0; r < part.weight.size(0); ++r) {
        float sum =
            dot(row_of<Float8E4M3>(x.codes, t), x.scales, t, row_of<Float8E4M3>(part.weight, r),
                row_of<float>(part.scales, r / kScaleBlock), part.weight.size(1));
        if (!part.bias.empty()) sum += part.bias.data<float>()[r];
        if constexpr (kAdd) sum += to_float(to[r]);
        store(sum, to[r]);
      }
    }
  });
}

template <bool kAdd>
void multiply(const Tensor& x, const LinearWeight& weight, const Tensor& out,
              const QuantizedActivations& quantized) {
  if (!quantized.empty()) {
    dispatch_activation(x.dtype(), [&]<typename X>() {
      for (int64_t t = 0; t < x.size(0); ++t) cpu::quantize_row<X>(x, t, quantized);
    });
  }
  int64_t first_row = 0;
  for (const LinearPart& part : weight.parts) {
    const int64_t rows = part.weight.size(0);
    const int64_t columns = part.weight.size(1);
    if (!quantized.empty() && part.weight.dtype() == DType::f8_e4m3) {
      multiply_quantized<kAdd>(quantized, part, out.slice(1, first_row, rows));
      first_row += rows;
      continue;
    }
    dispatch_weight(part.weight.dtype(), [&]<typename W>() {
      dispatch_two_activations(x.dtype(), out.dtype(), [&]<typename X, typename To>() {
        for (int64_t t = 0; t < x.size(0); ++t) {
          const X* from = row_of<X>(x, t);
          To* to = row_of<To>(out, t) + first_row;
          for (int64_t r = 0; r < rows; ++r) {
            const float* scales =
                part.scales.empty() ? nullptr : row_of<float>(part.scales, r / kScaleBlock);
            float sum = dot(from, row_of<W>(part.weight, r), scales, columns);
            if (!part.bias.empty()) sum += part.bias.data<float>()[r];
            if constexpr (kAdd) sum += to_float(to[r]);
            store(sum, to[r]);
          }
        }
      });
    });
    first_row += rows;
  }
}

}  // namespace

void ReferenceBackend::do_linear(Tensor x, const LinearWeight& weight, Tensor out,
                                 const QuantizedActivations& quantized) {
  multiply<false>(x, weight, out, quantized);
}

void ReferenceBackend::do_linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                                     const QuantizedActivations& quantized) {
  multiply<true>(x, weight, out, quantized);
}

void ReferenceBackend::do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch,
                                          Tensor out, const QuantizedActivations& quantized) {
  for_scratch_rows(x, scratch, out, [&](const Tensor& rows, const Tensor& both, const Tensor& to) {
    do_linear(rows, gate_up, both, quantized);
    do_silu_mul(both, to);
  });
}

}  // namespace glimpse
