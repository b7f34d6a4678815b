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
#include "cpu/quantize_activations.h"

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

// Columns of a panel's weight rows as f32, scaled: out [count, columns].
void widen_block(const LinearPart& part, int64_t first, int64_t count, int64_t first_column,
                 int64_t columns, float* out) {
  dispatch_weight(part.weight.dtype(), [&]<typename W>() {
    for (int64_t i = 0; i < count; ++i) {
      const float* scales = scale_row(part, first + i);
      if (scales != nullptr) scales += first_column / kScaleBlock;
      cpu::widen_row(row_of<W>(part.weight, first + i) + first_column, scales, columns,
                     out + i * columns);
    }
  });
}

/// Up to kScaleBlock columns of a panel's weight rows: one scale, as a panel begins at a multiple
/// of 64 rows.
struct WeightBlock {
  const LinearPart* part;
  int64_t first;  // weight row
  int64_t count;  // of weight rows
  int64_t first_column;
  int64_t columns;

  WeightBlock(const LinearPart& of, int64_t panel, int64_t column)
      : part(&of),
        first(panel * kPanelRows),
        count(std::min(kPanelRows, of.weight.size(0) - first)),
        first_column(column),
        columns(std::min(kScaleBlock, of.weight.size(1) - column)) {}
};

/// The block as a panel in f32, scales and all.
float pack(const WeightBlock& block, float* panel) {
  thread_local AlignedVector<float> rows(kPanelRows * kScaleBlock);
  widen_block(*block.part, block.first, block.count, block.first_column, block.columns,
              rows.data());
  cpu::pack_panel(rows.data(), block.columns, block.count, block.columns, panel);
  return 1.0F;
}

/// The block as a panel in bf16, and the factor that its sums still want: FP8 is exact in bf16, its
/// scale waits for them. f32 and f16 are rounded there.
float pack(const WeightBlock& block, BFloat16* panel) {
  const Tensor& weight = block.part->weight;
  const int64_t stride = weight.row_stride();
  dispatch_weight(weight.dtype(), [&]<typename W>() {
    const W* from = row_of<W>(weight, block.first) + block.first_column;
    if constexpr (std::is_same_v<W, BFloat16> || std::is_same_v<W, Float8E4M3>) {
      cpu::pack_panel(from, stride, block.count, block.columns, panel);
    } else {
      thread_local AlignedVector<float> widened(kPanelRows * kScaleBlock);
      thread_local AlignedVector<BFloat16> rows(kPanelRows * kScaleBlock);
      widen_block(*block.part, block.first, block.count, block.first_column, block.columns,
                  widened.data());
      cpu::narrow_row(widened.data(), block.count * block.columns, rows.data());
      cpu::pack_panel(rows.data(), block.columns, block.count, block.columns, panel);
    }
  });
  const bool is_scaled = !block.part->scales.empty();
  return is_scaled ? scale_row(*block.part, block.first)[block.first_column / kScaleBlock] : 1.0F;
}

/// Asks memory for the weights of the panels to come, a few lines at a time between two products:
/// of a burst of requests a processor drops most. Row after row, as they lie in memory, a whole
/// panel ahead: blocks of columns have their rows far apart, which no prefetcher foresees.
class Prefetcher {
 public:
  Prefetcher(const LinearPart& part, int64_t first_panel, int64_t last_panel)
      : at_(part.weight.raw() + first_panel * kPanelRows * row_bytes(part)),
        end_(part.weight.raw() +
             std::min(last_panel * kPanelRows, part.weight.size(0)) * row_bytes(part)),
        panel_bytes_(kPanelRows * row_bytes(part)) {}
  void advance(int64_t bytes) {
    const std::byte* to = at_ + std::min(bytes, end_ - at_);
    for (; at_ < to; at_ += kCacheLine) __builtin_prefetch(at_, 0, 2);
  }
  [[nodiscard]] int64_t panel_bytes() const { return panel_bytes_; }

 private:
  static int64_t row_bytes(const LinearPart& part) {
    return part.weight.row_stride() * bytes_of(part.weight.dtype());
  }
  const std::byte* at_;
  const std::byte* end_;
  int64_t panel_bytes_;
};

/// What a thread needs to multiply panels; kept from one loop to the next.
template <typename T>
struct PanelScratch {
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

// All of `x` times a packed panel, six rows at a time, while `bytes` of weights to come are asked
// for.
template <typename T>
void multiply_panel(const T* x, int64_t num_x, int64_t columns, const cpu::PanelSums& to,
                    const T* packed, Prefetcher& prefetcher, int64_t bytes) {
  const int64_t tiles = (num_x + kTileRows - 1) / kTileRows;
  const int64_t bytes_a_tile = (bytes + tiles - 1) / tiles;
  for (int64_t t = 0; t < num_x; t += kTileRows) {
    prefetcher.advance(bytes_a_tile);
    cpu::PanelSums tile = to;
    tile.sums += t * kPanelRows;
    cpu::multiply_panel(x + t * kScaleBlock, kScaleBlock, std::min(kTileRows, num_x - t), packed,
                        columns, tile);
  }
}

// Many rows: panel by panel; `x` holds the rows of p.x from `first_x` on.
template <typename T>
void multiply_panels(const Product& p, const Blocks<T>& x, int64_t first_x, int64_t first_panel,
                     int64_t last_panel) {
  thread_local PanelScratch<T> s;
  const int64_t columns = p.part.weight.size(1);
  s.sums.resize(static_cast<size_t>(x.num_rows * kPanelRows));
  Prefetcher prefetcher(p.part, first_panel, last_panel);
  prefetcher.advance(prefetcher.panel_bytes());
  const int64_t num_blocks = (columns + kScaleBlock - 1) / kScaleBlock;
  const int64_t bytes_a_block = (prefetcher.panel_bytes() + num_blocks - 1) / num_blocks;
  for (int64_t index = first_panel; index < last_panel; ++index) {
    for (int64_t k = 0; k < columns; k += kScaleBlock) {
      const WeightBlock block(p.part, index, k);
      const float scale = pack(block, s.packed.data());
      multiply_panel(x.block(k), x.num_rows, block.columns,
                     {.sums = s.sums.data(), .scale = scale, .first = k == 0}, s.packed.data(),
                     prefetcher, bytes_a_block);
    }
    const int64_t first = index * kPanelRows;
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

// What FP8 stands for, code times scale, is multiplied in f32: the formula up to the order of sums.
void FastCpuBackend::multiply_quantized(const Tensor& x, const LinearWeight& weight,
                                        const QuantizedActivations& quantized, const Tensor& out,
                                        bool add) {
  AlignedVector<float> values(static_cast<size_t>(x.size(0) * x.size(1)));
  const Tensor rounded(values.data(), DType::f32, Device::cpu, {x.size(0), x.size(1)});
  dispatch_activation(x.dtype(), [&]<typename T>() {
    pool_.parallel_for(x.size(0), 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        cpu::quantize_row<T>(x, t, quantized);
        const Float8E4M3* codes = row_of<Float8E4M3>(quantized.codes, t);
        for (int64_t k = 0; k < x.size(1); ++k) {
          row_of<float>(rounded, t)[k] =
              to_float(codes[k]) * row_of<float>(quantized.scales, k / kScaleBlock)[t];
        }
      }
    });
  });
  int64_t column = 0;
  for (const LinearPart& part : weight.parts) {
    const bool is_fp8 = part.weight.dtype() == DType::f8_e4m3;
    const int64_t rows = part.weight.size(0);
    multiply(is_fp8 ? rounded : x, {.parts = {part}}, out.slice(1, column, rows), add);
    column += rows;
  }
}

void FastCpuBackend::do_linear(Tensor x, const LinearWeight& weight, Tensor out,
                               const QuantizedActivations& quantized) {
  if (!quantized.empty()) return multiply_quantized(x, weight, quantized, out, false);
  multiply(x, weight, out, false);
}

void FastCpuBackend::do_linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                                   const QuantizedActivations& quantized) {
  if (!quantized.empty()) return multiply_quantized(x, weight, quantized, out, true);
  multiply(x, weight, out, true);
}

void FastCpuBackend::do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch,
                                        Tensor out, const QuantizedActivations& quantized) {
  for_scratch_rows(x, scratch, out, [&](const Tensor& rows, const Tensor& both, const Tensor& to) {
    do_linear(rows, gate_up, both, quantized);
    do_silu_mul(both, to);
  });
}

}  // namespace glimpse
