// Linear layers on the CPU. Few rows (decoding): every weight is read once from where the file is
// mapped and multiplied in registers. Many rows: a panel of weight rows is widened once into a
// thread's cache and multiplied with all activations.
#include <algorithm>
#include <vector>

#include "cpu/elements.h"
#include "cpu/fast_backend.h"
#include "cpu/kernels.h"

namespace glimpse {
namespace {

// Weight rows of a panel: a multiple of the tiles' six; 24 rows of 2048 floats stay in L2.
constexpr int64_t kPanelRows = 24;
// Activation rows multiplied with a panel before the next ones are looked at.
constexpr int64_t kBlockRows = 64;
// Rows up to which weights are multiplied straight from the file.
constexpr int64_t kDirectRows = 4;

struct Product {
  const Tensor& x;
  const LinearPart& part;
  const Tensor& out;
  int64_t out_first;  // column of `out` where the part begins
  bool add;
};

const float* scale_row(const LinearPart& part, int64_t row) {
  return part.scales.empty() ? nullptr : row_of<float>(part.scales, row / kScaleBlock);
}

// Adds bias and, where asked, what is there already; `sums` [rows of x, count] from weight row
// `first` on.
void finish(const Product& p, int64_t first_x, int64_t num_x, int64_t first, int64_t count,
            const float* sums, int64_t sums_stride) {
  const float* bias = p.part.bias.empty() ? nullptr : p.part.bias.data<float>() + first;
  dispatch_activation(p.out.dtype(), [&]<typename To>() {
    for (int64_t t = 0; t < num_x; ++t) {
      To* to = row_of<To>(p.out, first_x + t) + p.out_first + first;
      const float* from = sums + t * sums_stride;
      for (int64_t n = 0; n < count; ++n) {
        float value = from[n];
        if (bias != nullptr) value += bias[n];
        if (p.add) value += to_float(to[n]);
        store(value, to[n]);
      }
    }
  });
}

// A panel of weight rows in the type that is multiplied.
struct Panel {
  std::vector<float> f32;
  std::vector<BFloat16> bf16;
  std::vector<float> sums = std::vector<float>(kBlockRows * kPanelRows);
};

void widen_panel(const LinearPart& part, int64_t first, int64_t count, std::vector<float>& panel) {
  const int64_t columns = part.weight.size(1);
  panel.resize(static_cast<size_t>(kPanelRows * columns));
  dispatch_weight(part.weight.dtype(), [&]<typename W>() {
    for (int64_t r = 0; r < count; ++r) {
      cpu::widen_row(row_of<W>(part.weight, first + r), scale_row(part, first + r), columns,
                     panel.data() + r * columns);
    }
  });
}

// bf16 weights need no panel; FP8 is scaled and rounded to bf16, others are rounded.
const BFloat16* bf16_panel(const LinearPart& part, int64_t first, int64_t count, Panel& panel,
                           int64_t& stride) {
  const int64_t columns = part.weight.size(1);
  if (part.weight.dtype() == DType::bf16) {
    stride = part.weight.row_stride();
    return row_of<BFloat16>(part.weight, first);
  }
  stride = columns;
  panel.bf16.resize(static_cast<size_t>(kPanelRows * columns));
  if (part.weight.dtype() == DType::f8_e4m3) {
    for (int64_t r = 0; r < count; ++r) {
      cpu::widen_fp8_row(row_of<Float8E4M3>(part.weight, first + r), scale_row(part, first + r),
                         columns, panel.bf16.data() + r * columns);
    }
  } else {
    widen_panel(part, first, count, panel.f32);
    for (int64_t r = 0; r < count; ++r) {
      cpu::narrow_row(panel.f32.data() + r * columns, columns, panel.bf16.data() + r * columns);
    }
  }
  return panel.bf16.data();
}

// Many rows: panel by panel.
void multiply_panels(const Product& p, int64_t first_panel, int64_t last_panel, bool bf16) {
  Panel panel;
  const int64_t rows = p.part.weight.size(0);
  const int64_t columns = p.part.weight.size(1);
  for (int64_t index = first_panel; index < last_panel; ++index) {
    const int64_t first = index * kPanelRows;
    const int64_t count = std::min(kPanelRows, rows - first);
    int64_t stride = columns;
    const BFloat16* narrow = nullptr;
    if (bf16) {
      narrow = bf16_panel(p.part, first, count, panel, stride);
    } else {
      widen_panel(p.part, first, count, panel.f32);
    }
    for (int64_t t = 0; t < p.x.size(0); t += kBlockRows) {
      const int64_t num_x = std::min(kBlockRows, p.x.size(0) - t);
      if (bf16) {
        cpu::multiply_bf16(row_of<BFloat16>(p.x, t), p.x.row_stride(), num_x, narrow, stride, count,
                           columns, panel.sums.data(), kPanelRows);
      } else {
        cpu::multiply_f32(row_of<float>(p.x, t), p.x.row_stride(), num_x, panel.f32.data(), columns,
                          count, columns, panel.sums.data(), kPanelRows);
      }
      finish(p, t, num_x, first, count, panel.sums.data(), kPanelRows);
    }
  }
}

// Few rows of bf16: straight from the mapped weights. `x` is interleaved where they are FP8.
void multiply_direct(const Product& p, const std::vector<BFloat16>& interleaved,
                     int64_t interleaved_stride, int64_t first, int64_t last) {
  const int64_t columns = p.part.weight.size(1);
  const int64_t num_x = p.x.size(0);
  float sums[kDirectRows * kPanelRows];
  for (int64_t row = first; row < last; row += kPanelRows) {
    const int64_t count = std::min(kPanelRows, last - row);
    if (p.part.weight.dtype() == DType::f8_e4m3) {
      for (int64_t r = 0; r < count; ++r) {
        float one[kDirectRows];
        cpu::multiply_fp8_row(interleaved.data(), interleaved_stride, num_x,
                              row_of<Float8E4M3>(p.part.weight, row + r),
                              scale_row(p.part, row + r), columns, one);
        for (int64_t t = 0; t < num_x; ++t) sums[t * kPanelRows + r] = one[t];
      }
    } else {
      cpu::multiply_bf16(row_of<BFloat16>(p.x, 0), p.x.row_stride(), num_x,
                         row_of<BFloat16>(p.part.weight, row), p.part.weight.row_stride(), count,
                         columns, sums, kPanelRows);
    }
    finish(p, 0, num_x, row, count, sums, kPanelRows);
  }
}

bool is_direct(const Product& p) {
  const DType dtype = p.part.weight.dtype();
  return p.x.size(0) <= kDirectRows && (dtype == DType::f8_e4m3 || dtype == DType::bf16);
}

std::vector<BFloat16> interleave(const Tensor& x, int64_t& stride) {
  const int64_t columns = x.size(1);
  stride = (columns + 63) / 64 * 64;
  std::vector<BFloat16> out(static_cast<size_t>(stride * x.size(0)));
  for (int64_t t = 0; t < x.size(0); ++t) {
    cpu::interleave_for_fp8(row_of<BFloat16>(x, t), columns, out.data() + t * stride);
  }
  return out;
}

}  // namespace

void FastCpuBackend::multiply(const Tensor& x, const LinearWeight& weight, const Tensor& out,
                              bool add) {
  const bool bf16 = x.dtype() == DType::bf16 && cpu::has_bf16_dot();
  // Without bf16 products the activations are widened once, which changes no bit of the products.
  std::vector<float> widened;
  Tensor input = x;
  if (x.dtype() == DType::bf16 && !bf16) {
    widened.resize(static_cast<size_t>(x.num_elements()));
    input = Tensor(widened.data(), DType::f32, Device::cpu, {x.size(0), x.size(1)});
    ReferenceBackend::do_copy(x, input);
  }
  std::vector<BFloat16> interleaved;
  int64_t interleaved_stride = 0;
  int64_t first_column = 0;
  for (const LinearPart& part : weight.parts) {
    const Product p{input, part, out, first_column, add};
    const int64_t rows = part.weight.size(0);
    first_column += rows;
    if (bf16 && is_direct(p)) {
      if (part.weight.dtype() == DType::f8_e4m3 && interleaved.empty()) {
        interleaved = interleave(x, interleaved_stride);
      }
      const int64_t grain = std::max<int64_t>(kPanelRows, 65536 / part.weight.size(1) / 6 * 6);
      pool_.parallel_for(rows, grain, [&](int64_t first, int64_t last) {
        multiply_direct(p, interleaved, interleaved_stride, first, last);
      });
    } else {
      const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
      const int64_t work = x.size(0) * part.weight.size(1) * kPanelRows;
      pool_.parallel_for(
          panels, std::max<int64_t>(1, (1 << 19) / std::max<int64_t>(work, 1)),
          [&](int64_t first, int64_t last) { multiply_panels(p, first, last, bf16); });
    }
  }
}

void FastCpuBackend::do_linear(Tensor x, const LinearWeight& weight, Tensor out) {
  multiply(x, weight, out, false);
}

void FastCpuBackend::do_linear_add(Tensor x, const LinearWeight& weight, Tensor out) {
  multiply(x, weight, out, true);
}

void FastCpuBackend::do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch,
                                        Tensor out) {
  multiply(x, gate_up, scratch, false);
  do_silu_mul(scratch, out);
}

}  // namespace glimpse
