// Linear layers on the CPU. Few rows (decoding): every weight is read once from where the file is
// mapped and multiplied in registers. Many rows: 128 columns of a panel of weight rows (one FP8
// scale) are widened and packed once into a thread's cache and multiplied with all activations,
// while the next ones come from memory.
#include <algorithm>
#include <vector>

#include "cpu/aligned_vector.h"
#include "cpu/elements.h"
#include "cpu/fast_backend.h"
#include "cpu/kernels.h"

namespace glimpse {
namespace {

using cpu::kPanelRows;

// Activation rows whose sums (256 bytes each) stay in L2 while a panel's columns pass by.
constexpr int64_t kBlockRows = 1024;
// Rows up to which weights are multiplied straight from the file.
constexpr int64_t kDirectRows = 4;
// The least that a thread reads at once when it does.
constexpr int64_t kDirectBytes = 65536;
constexpr int64_t kCacheLine = 64;

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
// `first` on, at most kPanelRows of them.
void finish(const Product& p, int64_t first_x, int64_t num_x, int64_t first, int64_t count,
            const float* sums, int64_t sums_stride) {
  const float* bias = p.part.bias.empty() ? nullptr : p.part.bias.data<float>() + first;
  const int64_t column = p.out_first + first;
  for (int64_t t = 0; t < num_x; ++t) {
    const float* from = sums + t * sums_stride;
    if (p.out.dtype() == DType::f32) {
      cpu::finish_row(from, bias, p.add, count, row_of<float>(p.out, first_x + t) + column);
      continue;
    }
    BFloat16* to = row_of<BFloat16>(p.out, first_x + t) + column;
    float row[kPanelRows];
    if (p.add) cpu::widen_row(to, nullptr, count, row);
    cpu::finish_row(from, bias, p.add, count, row);
    cpu::narrow_row(row, count, to);
  }
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
  AlignedVector<float> widened = AlignedVector<float>(kPanelRows * kScaleBlock);
  AlignedVector<T> rows = AlignedVector<T>(kPanelRows * kScaleBlock);
  AlignedVector<T> packed = AlignedVector<T>(kPanelRows * kScaleBlock);
  AlignedVector<float> sums;

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

// Asks for columns of `count` weight rows: rows are far apart, which no prefetcher of a processor
// foresees.
void prefetch(const LinearPart& part, int64_t first, int64_t count, int64_t first_column) {
  const int64_t width = std::min(kScaleBlock, part.weight.size(1) - first_column);
  const int64_t bytes = bytes_of(part.weight.dtype());
  const std::byte* at =
      part.weight.raw() + (first * part.weight.row_stride() + first_column) * bytes;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < width * bytes; i += kCacheLine) __builtin_prefetch(at + i, 0, 2);
    at += part.weight.row_stride() * bytes;
  }
}

// Many rows: panel by panel.
template <typename T>
void multiply_panels(const Product& p, int64_t first_panel, int64_t last_panel) {
  thread_local Panel<T> panel;
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
        if (k + kScaleBlock < columns) {
          prefetch(p.part, first, count, k + kScaleBlock);
        } else if (index + 1 < last_panel) {
          prefetch(p.part, first + kPanelRows, std::min(kPanelRows, rows - first - kPanelRows), 0);
        }
        cpu::multiply_panel(
            row_of<T>(p.x, t) + k, p.x.row_stride(), num_x, panel.packed.data(), width,
            {.sums = panel.sums.data(), .count = count, .scale = scale, .first = k == 0});
      }
      finish(p, t, num_x, first, count, panel.sums.data(), kPanelRows);
    }
  }
}

// Few rows: straight from the mapped weights. bf16 activations are interleaved where those are FP8.
void multiply_direct(const Product& p, const AlignedVector<BFloat16>& interleaved,
                     int64_t interleaved_stride, int64_t first, int64_t last) {
  const int64_t columns = p.part.weight.size(1);
  const int64_t num_x = p.x.size(0);
  float sums[kDirectRows * kPanelRows];
  for (int64_t row = first; row < last; row += kPanelRows) {
    const int64_t count = std::min(kPanelRows, last - row);
    for (int64_t r = 0; r < count; ++r) {
      float one[kDirectRows];
      const float* scales = scale_row(p.part, row + r);
      if (p.x.dtype() == DType::f32) {
        dispatch_weight(p.part.weight.dtype(), [&]<typename W>() {
          cpu::multiply_row(row_of<float>(p.x, 0), p.x.row_stride(), num_x,
                            row_of<W>(p.part.weight, row + r), scales, columns, one);
        });
      } else if (p.part.weight.dtype() == DType::f8_e4m3) {
        cpu::multiply_fp8_row(interleaved.data(), interleaved_stride, num_x,
                              row_of<Float8E4M3>(p.part.weight, row + r), scales, columns, one);
      } else {
        cpu::multiply_bf16_row(row_of<BFloat16>(p.x, 0), p.x.row_stride(), num_x,
                               row_of<BFloat16>(p.part.weight, row + r), columns, one);
      }
      for (int64_t t = 0; t < num_x; ++t) sums[t * kPanelRows + r] = one[t];
    }
    finish(p, 0, num_x, row, count, sums, kPanelRows);
  }
}

// f32 and f16 weights are rounded to bf16 before they meet bf16 activations: in panels.
bool is_direct(const Product& p) {
  const DType dtype = p.part.weight.dtype();
  return p.x.size(0) <= kDirectRows &&
         (p.x.dtype() == DType::f32 || dtype == DType::f8_e4m3 || dtype == DType::bf16);
}

AlignedVector<BFloat16> interleave(const Tensor& x, int64_t& stride) {
  const int64_t columns = x.size(1);
  stride = (columns + 63) / 64 * 64;
  AlignedVector<BFloat16> out(static_cast<size_t>(stride * x.size(0)));
  for (int64_t t = 0; t < x.size(0); ++t) {
    cpu::interleave_for_fp8(row_of<BFloat16>(x, t), columns, out.data() + t * stride);
  }
  return out;
}

// One loop over groups of weight rows of all products: body(product, first group, last group).
template <typename Body>
void for_groups(ThreadPool& pool, const std::vector<Product>& products, int64_t group_rows,
                int64_t grain, const Body& body) {
  const auto num_groups = [&](const Product& p) {
    return (p.part.weight.size(0) + group_rows - 1) / group_rows;
  };
  int64_t total = 0;
  for (const Product& p : products) total += num_groups(p);
  pool.parallel_for(total, grain, [&](int64_t first, int64_t last) {
    for (const Product& p : products) {
      const int64_t count = num_groups(p);
      if (first < count && last > 0) {
        body(p, std::max<int64_t>(first, 0), std::min(last, count));
      }
      first -= count;
      last -= count;
    }
  });
}

}  // namespace

void FastCpuBackend::multiply(const Tensor& x, const LinearWeight& weight, const Tensor& out,
                              bool add) {
  // Without bf16 products the activations are widened once, which changes no bit of the products.
  std::vector<float> widened;
  Tensor input = x;
  if (x.dtype() == DType::bf16 && !cpu::has_bf16_dot()) {
    widened.resize(static_cast<size_t>(x.num_elements()));
    input = Tensor(widened.data(), DType::f32, Device::cpu, {x.size(0), x.size(1)});
    ReferenceBackend::do_copy(x, input);
  }
  const bool bf16 = input.dtype() == DType::bf16;
  std::vector<Product> direct;
  std::vector<Product> packed;
  bool has_fp8 = false;
  int64_t first_column = 0;
  for (const LinearPart& part : weight.parts) {
    const Product p{input, part, out, first_column, add};
    (is_direct(p) ? direct : packed).push_back(p);
    first_column += part.weight.size(0);
    has_fp8 = has_fp8 || part.weight.dtype() == DType::f8_e4m3;
  }
  if (!direct.empty()) {
    int64_t stride = 0;
    AlignedVector<BFloat16> interleaved;
    if (bf16 && has_fp8) interleaved = interleave(input, stride);
    const int64_t grain = std::max<int64_t>(kDirectBytes / x.size(1), 8);
    for_groups(pool_, direct, 1, grain, [&](const Product& p, int64_t first, int64_t last) {
      multiply_direct(p, interleaved, stride, first, last);
    });
  }
  if (!packed.empty()) {
    const int64_t work = x.size(0) * x.size(1) * kPanelRows;
    const int64_t grain = std::max<int64_t>(1, (1 << 19) / std::max<int64_t>(work, 1));
    for_groups(pool_, packed, kPanelRows, grain,
               [&](const Product& p, int64_t first, int64_t last) {
                 if (bf16) return multiply_panels<BFloat16>(p, first, last);
                 multiply_panels<float>(p, first, last);
               });
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
