// Linear layers on the CPU. Few rows (decoding): every weight is read once from where the file is
// mapped and multiplied in registers. Many rows: 128 columns of a panel of weight rows (one FP8
// scale) are widened and packed once into a thread's cache and multiplied with all activations,
// while the next ones come from memory.
#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/aligned_vector.h"
#include "cpu/elements.h"
#include "cpu/fast_backend.h"
#include "cpu/kernels.h"

namespace glimpse {
namespace {

using cpu::kPanelRows;

// Activation rows that meet a panel at once: they and their sums stay in L2.
constexpr int64_t kBlockRows = 640;
constexpr int64_t kBlockRowsPerChunk = 32;
// Rows up to which weights are multiplied straight from the file.
constexpr int64_t kDirectRows = 4;
// The least that a thread reads at once when it does.
constexpr int64_t kDirectBytes = 65536;
constexpr int64_t kCacheLine = 64;
// Activation rows that meet a panel between two looks after the next one's weights.
constexpr int64_t kTileRows = 6;

struct Product {
  const Tensor& x;
  const LinearPart& part;
  const Tensor& out;
  int64_t out_first;  // column of `out` where the part begins
  bool add;
};

const float* scale_row(const LinearPart& part, int64_t row) {
  if (part.scales.empty()) return nullptr;
  return part.scales.data<float>() + row / kScaleBlock * part.scales.stride(0);
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

// Columns of one weight row as what is multiplied. FP8 is exact in bf16: its scale waits for the
// sums. f32 and f16 are rounded there. `scratch` holds kScaleBlock floats.
void widen_columns(const LinearPart& part, int64_t row, int64_t first_column, int64_t columns,
                   float* scratch, BFloat16* out) {
  dispatch_weight(part.weight.dtype(), [&]<typename W>() {
    const W* from = row_of<W>(part.weight, row) + first_column;
    if constexpr (std::is_same_v<W, BFloat16>) {
      std::copy_n(from, columns, out);
    } else if constexpr (std::is_same_v<W, Float8E4M3>) {
      cpu::widen_fp8_row(from, columns, out);
    } else {
      cpu::widen_row(from, nullptr, columns, scratch);
      cpu::narrow_row(scratch, columns, out);
    }
  });
}

void widen_columns(const LinearPart& part, int64_t row, int64_t first_column, int64_t columns,
                   float*, float* out) {
  const float* scales = scale_row(part, row);
  if (scales != nullptr) scales += first_column / kScaleBlock;
  dispatch_weight(part.weight.dtype(), [&]<typename W>() {
    cpu::widen_row(row_of<W>(part.weight, row) + first_column, scales, columns, out);
  });
}

/// A block of up to kScaleBlock columns of a panel's weight rows on its way from memory. Rows
/// are far apart, which no prefetcher of a processor foresees, and of a burst of requests it drops
/// most: so a few rows are asked for and a few that have come are widened between two products.
template <typename T>
class WeightBlock {
 public:
  void begin(const LinearPart& part, int64_t first, int64_t first_column) {
    part_ = &part;
    first_ = first;
    first_column_ = first_column;
    count_ = std::min(kPanelRows, part.weight.size(0) - first);
    columns_ = std::min(kScaleBlock, part.weight.size(1) - first_column);
    num_asked_ = 0;
    num_widened_ = 0;
  }
  void advance(int64_t rows) {
    const int64_t end = std::min(count_, num_widened_ + rows);
    const int64_t bytes = bytes_of(part_->weight.dtype());
    for (; num_asked_ < std::min(count_, end + rows + kRowsAhead); ++num_asked_) {
      const std::byte* at =
          part_->weight.raw() +
          ((first_ + num_asked_) * part_->weight.row_stride() + first_column_) * bytes;
      for (int64_t i = 0; i < columns_ * bytes; i += kCacheLine) __builtin_prefetch(at + i);
    }
    for (; num_widened_ < end; ++num_widened_) {
      widen_columns(*part_, first_ + num_widened_, first_column_, columns_, scratch_.data(),
                    rows_.data() + num_widened_ * columns_);
    }
  }
  /// The block as a panel, and the factor that its sums still want: a panel begins at a multiple
  /// of 64 rows and of kScaleBlock columns, so that it has one scale.
  float pack(T* panel) {
    advance(count_);
    cpu::pack_panel(rows_.data(), columns_, count_, columns_, panel);
    const bool is_scaled = std::is_same_v<T, float> || part_->scales.empty();
    return is_scaled ? 1.0F : scale_row(*part_, first_)[first_column_ / kScaleBlock];
  }
  [[nodiscard]] int64_t columns() const { return columns_; }

 private:
  static constexpr int64_t kRowsAhead = 4;

  const LinearPart* part_ = nullptr;
  int64_t first_ = 0;
  int64_t first_column_ = 0;
  int64_t count_ = 0;
  int64_t columns_ = 0;
  int64_t num_asked_ = 0;
  int64_t num_widened_ = 0;
  AlignedVector<float> scratch_ = AlignedVector<float>(kScaleBlock);
  AlignedVector<T> rows_ = AlignedVector<T>(kPanelRows * kScaleBlock);
};

/// What a thread needs to multiply panels; kept from one loop to the next.
template <typename T>
struct PanelScratch {
  WeightBlock<T> block;
  AlignedVector<T> packed = AlignedVector<T>(kPanelRows * kScaleBlock);
  AlignedVector<float> sums;
};

/// Activation rows in blocks of kScaleBlock columns, each block's rows one behind the other:
/// rows a power of two apart would share a few sets of the caches.
template <typename T>
struct Blocks {
  int64_t num_rows = 0;
  AlignedVector<T> values;  // [blocks of columns, num_rows, kScaleBlock]

  [[nodiscard]] const T* block(int64_t first_column) const {
    return values.data() + first_column * num_rows;
  }
  void pack(ThreadPool& pool, const Tensor& x, int64_t first, int64_t count) {
    const int64_t columns = x.size(1);
    num_rows = count;
    values.resize(
        static_cast<size_t>((columns + kScaleBlock - 1) / kScaleBlock * kScaleBlock * num_rows));
    pool.parallel_for(num_rows, kBlockRowsPerChunk, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T* row = row_of<T>(x, first + t);
        for (int64_t k = 0; k < columns; k += kScaleBlock) {
          std::copy_n(row + k, std::min(kScaleBlock, columns - k),
                      values.data() + k * num_rows + t * kScaleBlock);
        }
      }
    });
  }
};

// All of `x` times a packed panel, six rows at a time, while the next block of weights comes.
template <typename T>
void multiply_panel(const T* x, int64_t num_x, int64_t columns, float scale, bool first,
                    PanelScratch<T>& s) {
  const int64_t tiles = (num_x + kTileRows - 1) / kTileRows;
  const int64_t rows_a_tile = (kPanelRows + tiles - 1) / tiles;
  for (int64_t t = 0; t < num_x; t += kTileRows) {
    s.block.advance(rows_a_tile);
    cpu::multiply_panel(x + t * kScaleBlock, kScaleBlock, std::min(kTileRows, num_x - t),
                        s.packed.data(), columns,
                        {.sums = s.sums.data() + t * kPanelRows, .scale = scale, .first = first});
  }
}

// Many rows: panel by panel; `x` holds the rows of p.x from `first_x` on.
template <typename T>
void multiply_panels(const Product& p, const Blocks<T>& x, int64_t first_x, int64_t first_panel,
                     int64_t last_panel) {
  thread_local PanelScratch<T> s;
  const int64_t columns = p.part.weight.size(1);
  s.sums.resize(static_cast<size_t>(x.num_rows * kPanelRows));
  s.block.begin(p.part, first_panel * kPanelRows, 0);
  for (int64_t index = first_panel; index < last_panel; ++index) {
    const int64_t first = index * kPanelRows;
    for (int64_t k = 0; k < columns; k += kScaleBlock) {
      const int64_t width = s.block.columns();
      const float scale = s.block.pack(s.packed.data());
      if (k + kScaleBlock < columns) {
        s.block.begin(p.part, first, k + kScaleBlock);
      } else if (index + 1 < last_panel) {
        s.block.begin(p.part, first + kPanelRows, 0);
      }
      multiply_panel(x.block(k), x.num_rows, width, scale, k == 0, s);
    }
    finish(p, first_x, x.num_rows, first, std::min(kPanelRows, p.part.weight.size(0) - first),
           s.sums.data(), kPanelRows);
  }
}

/// Few bf16 activations for FP8 weights, in the order in which those are unpacked.
struct Interleaved {
  int64_t stride = 0;
  AlignedVector<BFloat16> rows;

  explicit Interleaved(const Tensor& x) : stride((x.size(1) + 63) / 64 * 64) {
    rows.resize(static_cast<size_t>(stride * x.size(0)));
    for (int64_t t = 0; t < x.size(0); ++t) {
      cpu::interleave_for_fp8(row_of<BFloat16>(x, t), x.size(1), rows.data() + t * stride);
    }
  }
};

// Few rows: straight from the mapped weights, `count` of them (at most kPanelRows) from `first` on.
// sums [rows of x, kPanelRows]
template <typename W>
void multiply_weight_rows(const Product& p, const Interleaved* interleaved, int64_t first,
                          int64_t count, float* sums) {
  const int64_t columns = p.part.weight.size(1);
  const int64_t stride = p.part.weight.row_stride();
  const int64_t num_x = p.x.size(0);
  const int64_t x_stride = p.x.row_stride();
  const W* w = row_of<W>(p.part.weight, first);
  for (int64_t r = 0; r < count; ++r) {
    const float* scales = scale_row(p.part, first + r);
    float one[kDirectRows] = {};
    if (p.x.dtype() == DType::f32) {
      cpu::multiply_row(p.x.data<float>(), x_stride, num_x, w + r * stride, scales, columns, one);
    } else if constexpr (std::is_same_v<W, Float8E4M3>) {
      cpu::multiply_fp8_row(interleaved->rows.data(), interleaved->stride, num_x, w + r * stride,
                            scales, columns, one);
    } else if constexpr (std::is_same_v<W, BFloat16>) {
      cpu::multiply_bf16_row(p.x.data<BFloat16>(), x_stride, num_x, w + r * stride, columns, one);
    }
    for (int64_t t = 0; t < num_x; ++t) sums[t * kPanelRows + r] = one[t];
  }
}

void multiply_direct(const Product& p, const Interleaved* interleaved, int64_t first,
                     int64_t last) {
  float sums[kDirectRows * kPanelRows];
  for (int64_t row = first; row < last; row += kPanelRows) {
    const int64_t count = std::min(kPanelRows, last - row);
    dispatch_weight(p.part.weight.dtype(), [&]<typename W>() {
      multiply_weight_rows<W>(p, interleaved, row, count, sums);
    });
    finish(p, 0, p.x.size(0), row, count, sums, kPanelRows);
  }
}

// f32 and f16 weights are rounded to bf16 before they meet bf16 activations: in panels.
bool is_direct(const Product& p) {
  const DType dtype = p.part.weight.dtype();
  return p.x.size(0) <= kDirectRows &&
         (p.x.dtype() == DType::f32 || dtype == DType::f8_e4m3 || dtype == DType::bf16);
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

template <typename T>
void multiply_packed(ThreadPool& pool, const std::vector<Product>& products) {
  const Tensor& x = products.front().x;
  const int64_t rows = x.size(0);
  const int64_t num_blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t block_rows = (tiles + num_blocks - 1) / num_blocks * kTileRows;  // about equal
  Blocks<T> blocks;
  for (int64_t first_x = 0; first_x < rows; first_x += block_rows) {
    blocks.pack(pool, x, first_x, std::min(block_rows, rows - first_x));
    const int64_t work = blocks.num_rows * x.size(1) * kPanelRows;
    const int64_t grain = std::max<int64_t>(1, (1 << 19) / work);
    for_groups(pool, products, kPanelRows, grain,
               [&](const Product& p, int64_t first, int64_t last) {
                 multiply_panels(p, blocks, first_x, first, last);
               });
  }
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
    std::optional<Interleaved> interleaved;
    if (bf16 && has_fp8) interleaved.emplace(input);
    const int64_t grain = std::max<int64_t>(kDirectBytes / x.size(1), 8);
    for_groups(pool_, direct, 1, grain, [&](const Product& p, int64_t first, int64_t last) {
      multiply_direct(p, interleaved ? &*interleaved : nullptr, first, last);
    });
  }
  if (packed.empty()) return;
  if (bf16) return multiply_packed<BFloat16>(pool_, packed);
  multiply_packed<float>(pool_, packed);
}

void FastCpuBackend::do_linear(Tensor x, const LinearWeight& weight, Tensor out) {
  multiply(x, weight, out, false);
}

void FastCpuBackend::do_linear_add(Tensor x, const LinearWeight& weight, Tensor out) {
  multiply(x, weight, out, true);
}

void FastCpuBackend::do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch,
                                        Tensor out) {
  for_scratch_rows(x, scratch, out, [&](const Tensor& rows, const Tensor& both, const Tensor& to) {
    multiply(rows, gate_up, both, false);
    do_silu_mul(both, to);
  });
}

}  // namespace glimpse
