// y = x W^T + b over the parts of a weight. In f32 an FP8 value is widened and scaled first; with
// bf16 activations the scale multiplies the f32 sum of its 128 columns, as the fast kernels do.
#include <algorithm>
#include <vector>

#include "cpu/elements.h"
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

template <bool kAdd>
void multiply(const Tensor& x, const LinearWeight& weight, const Tensor& out) {
  int64_t first_row = 0;
  for (const LinearPart& part : weight.parts) {
    const int64_t rows = part.weight.size(0);
    const int64_t columns = part.weight.size(1);
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

void ReferenceBackend::do_linear(Tensor x, const LinearWeight& weight, Tensor out) {
  multiply<false>(x, weight, out);
}

void ReferenceBackend::do_linear_add(Tensor x, const LinearWeight& weight, Tensor out) {
  multiply<true>(x, weight, out);
}

void ReferenceBackend::do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch,
                                          Tensor out) {
  for_scratch_rows(x, scratch, out, [&](const Tensor& rows, const Tensor& both, const Tensor& to) {
    do_linear(rows, gate_up, both);
    do_silu_mul(both, to);
  });
}

}  // namespace glimpse
