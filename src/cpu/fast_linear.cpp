// Linear layers on the CPU. Few rows (decoding): every weight is read once from where the file is
// mapped and multiplied in registers. Many rows: 128 columns of a panel of weight rows (one FP8
// scale) are widened and packed once into a thread's cache and multiplied with all activations.
#include <algorithm>
#include <vector>

#include "cpu/elements.h"
#include "cpu/fast_backend.h"
#include "cpu/kernels.h"

namespace glimpse {
namespace {

using cpu::kPanelRows;

// Weight rows multiplied as they lie: a multiple of the tiles' six; 24 rows of 2048 floats stay in
// L2.
constexpr int64_t kStripRows = 24;
// Activation rows whose sums (256 bytes each) stay in L2 while a panel's columns pass by.
constexpr int64_t kBlockRows = 1024;
// Rows up to which bf16 and FP8 weights are multiplied straight from the file.
constexpr int64_t kDirectRows = 4;
// Rows from which packing an f32 panel costs less than adding sums across lanes.
constexpr int64_t kPackedRows = 16;

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

// Weight rows widened to f32; columns `first_column` and on.
void widen_rows(const LinearPart& part, int64_t first, int64_t count, int64_t first_column,
                int64_t columns, float* out) {
  dispatch_weight(part.weight.dtype(), [&]<typename W>() {
    for (int64_t r = 0; r < count; ++r) {
      const float* scales = scale_row(part, first + r);
      cpu::widen_row(row_of<W>(part.weight, first + r) + first_column,
                     scales == nullptr ? nullptr : scales + first_column / kScaleBlock, columns,
                     out + r * columns);
    }
  });
}

// What a thread needs to multiply panels of up to kScaleBlock columns.
template <typename T>
struct Panel {
  std::vector<float> widened = std::vector<float>(kPanelRows * kScaleBlock);
  std::vector<T> rows = std::vector<T>(kPanelRows * kScaleBlock);
  std::vector<T> packed = std::vector<T>(kPanelRows * kScaleBlock);
  std::vector<float> sums;

  // Packs columns of `count` weight rows; returns the factor that their sums still want.
  float pack(const LinearPart& part, int64_t first, int64_t count, int64_t first_column,
             int64_t columns);
};

template <>
float Panel<float>::pack(const LinearPart& part, int64_t first, int64_t count, int64_t first_column,
                         int64_t columns) {
  widen_rows(part, first, count, first_column, columns, rows.data());
  cpu::pack_panel(rows.data(), columns, count, columns, packed.data());
  return 1.0F;
}

// FP8 is exact in bf16: its scale waits for the sums. f32 and f16 are rounded.
template <>
float Panel<BFloat16>::pack(const LinearPart& part, int64_t first, int64_t count,
                            int64_t first_column, int64_t columns) {
  const DType dtype = part.weight.dtype();
  if (dtype == DType::bf16) {
    cpu::pack_panel(row_of<BFloat16>(part.weight, first) + first_column, part.weight.row_stride(),
                    count, columns, packed.data());
    return 1.0F;
  }
  if (dtype == DType::f8_e4m3) {
    for (int64_t r = 0; r < count; ++r) {
      cpu::widen_fp8_row(row_of<Float8E4M3>(part.weight, first + r) + first_column, columns,
                         rows.data() + r * columns);
    }
  } else {
    widen_rows(part, first, count, first_column, columns, widened.data());
    cpu::narrow_row(widened.data(), count * columns, rows.data());
  }
  cpu::pack_panel(rows.data(), columns, count, columns, packed.data());
  // A panel begins at a multiple of 64 rows and a block of columns: it has one scale.
  return dtype == DType::f8_e4m3 ? scale_row(part, first)[first_column / kScaleBlock] : 1.0F;
}

// Many rows: panel by panel.
template <typename T>
void multiply_panels(const Product& p, int64_t first_panel, int64_t last_panel) {
  Panel<T> panel;
  const int64_t rows = p.part.weight.size(0);
  const int64_t columns = p.part.weight.size(1);
  const int64_t num_rows = p.x.size(0);
  panel.sums.resize(static_cast<size_t>(std::min(kBlockRows, num_rows) * kPanelRows));
  for (int64_t index = first_panel; index < last_panel; ++index) {
    const int64_t first = index * kPanelRows;
    const int64_t count = std::min(kPanelRows, rows - first);
    for (int64_t t = 0; t < num_rows; t += kBlockRows) {
      const int64_t num_x = std::min(kBlockRows, num_rows - t);
      for (int64_t k = 0; k < columns; k += kScaleBlock) {
        const int64_t width = std::min(kScaleBlock, columns - k);
        const float scale = panel.pack(p.part, first, count, k, width);
        cpu::multiply_panel(row_of<T>(p.x, t) + k, p.x.row_stride(), num_x, panel.packed.data(),
                            width, scale, k == 0, panel.sums.data());
      }
      finish(p, t, num_x, first, count, panel.sums.data(), kPanelRows);
    }
  }
}

// Few rows of f32: strips of weight rows widened and multiplied as they lie.
void multiply_strips(const Product& p, int64_t first_strip, int64_t last_strip) {
  const int64_t rows = p.part.weight.size(0);
  const int64_t columns = p.part.weight.size(1);
  std::vector<float> strip(static_cast<size_t>(kStripRows * columns));
  float sums[kPackedRows * kStripRows];
  for (int64_t first = first_strip * kStripRows; first < std::min(rows, last_strip * kStripRows);
       first += kStripRows) {
    const int64_t count = std::min(kStripRows, rows - first);
    widen_rows(p.part, first, count, 0, columns, strip.data());
    cpu::multiply_f32(row_of<float>(p.x, 0), p.x.row_stride(), p.x.size(0), strip.data(), columns,
                      count, columns, sums, kStripRows);
    finish(p, 0, p.x.size(0), first, count, sums, kStripRows);
  }
}

// Few rows of bf16: straight from the mapped weights. `x` is interleaved where they are FP8.
void multiply_direct(const Product& p, const std::vector<BFloat16>& interleaved,
                     int64_t interleaved_stride, int64_t first, int64_t last) {
  const int64_t columns = p.part.weight.size(1);
  const int64_t num_x = p.x.size(0);
  float sums[kDirectRows * kStripRows];
  for (int64_t row = first; row < last; row += kStripRows) {
    const int64_t count = std::min(kStripRows, last - row);
    if (p.part.weight.dtype() == DType::f8_e4m3) {
      for (int64_t r = 0; r < count; ++r) {
        float one[kDirectRows];
        cpu::multiply_fp8_row(interleaved.data(), interleaved_stride, num_x,
                              row_of<Float8E4M3>(p.part.weight, row + r),
                              scale_row(p.part, row + r), columns, one);
        for (int64_t t = 0; t < num_x; ++t) sums[t * kStripRows + r] = one[t];
      }
    } else {
      cpu::multiply_bf16(row_of<BFloat16>(p.x, 0), p.x.row_stride(), num_x,
                         row_of<BFloat16>(p.part.weight, row), p.part.weight.row_stride(), count,
                         columns, sums, kStripRows);
    }
    finish(p, 0, num_x, row, count, sums, kStripRows);
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
      const int64_t grain = std::max<int64_t>(kStripRows, 65536 / part.weight.size(1) / 6 * 6);
      pool_.parallel_for(rows, grain, [&](int64_t first, int64_t last) {
        multiply_direct(p, interleaved, interleaved_stride, first, last);
      });
    } else {
      const bool packed = bf16 || x.size(0) >= kPackedRows;
      const int64_t group = packed ? kPanelRows : kStripRows;
      const int64_t work = x.size(0) * part.weight.size(1) * group;
      const int64_t grain = std::max<int64_t>(1, (1 << 19) / std::max<int64_t>(work, 1));
      pool_.parallel_for((rows + group - 1) / group, grain, [&](int64_t first, int64_t last) {
        if (!packed) return multiply_strips(p, first, last);
        if (bf16) return multiply_panels<BFloat16>(p, first, last);
        multiply_panels<float>(p, first, last);
      });
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
