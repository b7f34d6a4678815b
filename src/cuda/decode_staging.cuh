// The products of the fused decoder as a block sees them, and how each one's activations get from
// what the blocks published into shared memory.
#pragma once

#include "cuda/decode_attention.cuh"

namespace glimpse::cuda::fused {

template <typename W, bool kMany>
__device__ ProductShape product_shape(const DecodeArguments& a, DecodeProduct product) {
  ProductShape shape;
  const int attended = a.num_heads * kDecodeHeadDim;
  const bool paired = product == DecodeProduct::gate_up;
  shape.outputs = product == DecodeProduct::qkv ? attended + 2 * a.num_kv_heads * kDecodeHeadDim
                  : paired                      ? a.intermediate_size
                                                : a.hidden_size;
  shape.columns = product == DecodeProduct::o      ? attended
                  : product == DecodeProduct::down ? a.intermediate_size
                                                   : a.hidden_size;
  shape.rows = TileRows::deal(shape.outputs, paired);
  const int fit =
      min((Layout<kMany>::kStagedBytes / (a.rows * 2) - 32) / kBlockColumns, kMaxChunkBlocks);
  const int blocks = (shape.columns + kBlockColumns - 1) / kBlockColumns;
  const int chunks = (blocks + fit - 1) / fit;
  shape.chunk_columns = (blocks + chunks - 1) / chunks * kBlockColumns;
  shape.pass = PassPlan::make(shape.rows.tiles,
                              min(shape.chunk_columns, shape.columns) * static_cast<int>(sizeof(W)),
                              kStreamWarps);
  return shape;
}

/// This lane's rows of a tile of a layer's product, from `first_column` on.
template <typename W>
__device__ inline LaneRows rows_of(const DecodeLayer& layer, const ProductShape& shape,
                                   DecodeProduct product, int tile, int first_column) {
  const bool paired = product == DecodeProduct::gate_up;
  const auto* lower = static_cast<const uint8_t*>(layer.weights[static_cast<int>(product)]);
  const auto* upper = paired ? static_cast<const uint8_t*>(layer.up) : lower;
  const float* scales = layer.scales[static_cast<int>(product)];
  const int offset = first_column * static_cast<int>(sizeof(W));
  LaneRows at =
      lane_rows<W>(shape.rows, paired, tile, lower + offset, upper + offset, scales,
                   paired ? layer.up_scales : scales, shape.columns * static_cast<int>(sizeof(W)),
                   (shape.columns + kBlockColumns - 1) / kBlockColumns);
  at.lower_scale += first_column / kBlockColumns;
  at.upper_scale += first_column / kBlockColumns;
  return at;
}

/// The units that a warp multiplies in a step, in their order: those of each pass over each chunk
/// of columns of each product of each layer.
template <typename W>
struct StepCursor {
  const DecodeLayers& layers;
  const ProductShape* shapes;  // in shared memory
  int steps;
  LanePieces at;
  int step = -1;  // layer and product
  int first_tile = 0, first_column = 0;
  int tile = 0, unit = 0, units = 0;  // of the next unit: its tile, its place, units per tile
  int left = 0;                       // units of this pass

  __device__ StepCursor(const DecodeLayers& all, const BlockTail& tail)
      : layers(all), shapes(tail.shapes), steps(tail.arguments.num_layers * kDecodeProducts) {
    next_product();
  }
  __device__ bool is_done() const { return step >= steps; }
  __device__ void advance() {
    --left;
    ++unit;
    if (left == 0) {
      next_pass();
    } else if (unit == units) {
      unit = 0;
      ++tile;
      seek();
    } else {
      at.lower += kUnitBytes;
      at.upper += kUnitBytes;
      ++at.scale;
    }
  }

 private:
  __device__ const ProductShape& shape() const { return shapes[step % kDecodeProducts]; }

  __device__ void next_product() {
    for (;;) {
      ++step;
      if (is_done()) return;
      first_tile = 0;
      first_column = 0;
      if (shape().rows.tiles == 0) continue;
      if (begin(shape().pass)) return;
      next_pass_of_product();
      if (left > 0) return;
    }
  }

  /// The next pass in which this warp has units; none is left where the product has no such pass.
  __device__ void next_pass_of_product() {
    for (;;) {
      const ProductShape& of = shape();
      first_tile += kTilesPerPass;
      if (first_tile >= of.rows.tiles) {
        first_tile = 0;
        first_column += of.chunk_columns;
        if (first_column >= of.columns) return;
      }
      const int columns = min(of.chunk_columns, of.columns - first_column);
      if (begin(PassPlan::make(of.rows.tiles - first_tile, columns * static_cast<int>(sizeof(W)),
                               kStreamWarps))) {
        return;
      }
    }
  }

  __device__ void next_pass() {
    next_pass_of_product();
    if (left == 0) next_product();
  }

  __device__ bool begin(const PassPlan& plan) {
    left = plan.count();
    if (left == 0) return false;
    units = plan.units.d;
    tile = plan.units.divide(plan.first());
    unit = plan.first() - tile * units;
    seek();
    return true;
  }

  __device__ void seek() {
    const LaneRows rows = rows_of<W>(layers.layers[step / kDecodeProducts], shape(),
                                     static_cast<DecodeProduct>(step % kDecodeProducts),
                                     first_tile + tile, first_column);
    at.lower = rows.lower + unit * kUnitBytes;
    at.upper = rows.upper + unit * kUnitBytes;
    at.scale = (threadIdx.x % 2 == 0 ? rows.lower_scale : rows.upper_scale) + unit;
  }
};

/// One product of one layer: only references into shared memory, to keep registers free for
/// weights.
template <typename W>
struct Product {
  const DecodeLayer& layer;
  const ProductShape& shape;
  DecodeProduct product;

  __device__ Product(const Block& block, const DecodeLayer& of_layer, DecodeProduct which)
      : layer(of_layer), shape(block.tail->shapes[static_cast<int>(which)]), product(which) {}

  __device__ bool is_paired() const { return product == DecodeProduct::gate_up; }
  __device__ LaneRows locate(int tile, int first_column) const {
    return rows_of<W>(layer, shape, product, tile, first_column);
  }
};

/// Copies the published bf16 rows of the MLP into shared memory, 256 columns of a row at a time.
template <typename W, bool kMany>
__device__ void stage_inner(const Block& block, const uint32_t* inner, int first, int count,
                            const Staged& staged) {
  const DecodeArguments& a = block.a;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = (count + kBlockColumns - 1) / kBlockColumns;
  const Divisor per_row = Divisor::of((blocks + 1) / 2);
  const int total = a.rows * per_row.d;
  constexpr int kAtOnce = kMany ? 8 : 3;
#pragma unroll 1
  for (int base = warp; base < total; base += kAtOnce * kStreamWarps) {
    uint4 words[kAtOnce] = {};
    int from[kAtOnce];  // negative: beyond the row's end
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamWarps;
      const int row = per_row.divide(item);
      const int column = (item - row * per_row.d) * 2 * kBlockColumns + lane * 8;
      from[i] =
          item < total && column < count ? (row * a.intermediate_size + first + column) / 2 : -1;
      if (from[i] >= 0) words[i] = peek4(inner + from[i]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamWarps;
      if (item >= total) break;
      const int row = per_row.divide(item);
      const uint4 eight = from[i] >= 0 ? collect_bits(inner + from[i], words[i]) : uint4{};
      __syncwarp();
      put_staged_bf16<W>(staged, row, (item - row * per_row.d) * 2, blocks, eight);
    }
  }
}

__device__ inline int warps_per_row(int rows) {
  return kStreamWarps / (rows > 4 ? 8 : rows > 2 ? 4 : rows);
}

/// The residual stream times the norm's weight, staged; find_norm_factors() has the rest of
/// rms_norm. Several warps share a row.
template <typename W, bool kMany>
__device__ void stage_norm(const Block& block, const uint32_t* published, const float* weight,
                           const Staged& staged) {
  const DecodeArguments& a = block.a;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int sharing = warps_per_row(a.rows);
  const int row = warp / sharing;
  if (row >= a.rows) return;
  const int blocks = (a.hidden_size + kBlockColumns - 1) / kBlockColumns;
  const bool is_input = published == nullptr;
  const uint32_t* from =
      (is_input ? reinterpret_cast<const uint32_t*>(a.hidden) : published) + row * a.hidden_size;
  float sum = 0;
  constexpr int kAtOnce = kMany ? 8 : 4;
#pragma unroll 1
  for (int base = warp % sharing; base < blocks; base += kAtOnce * sharing) {
    uint4 words[kAtOnce];
    float4 weights[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int column = (base + i * sharing) * kBlockColumns + lane * 4;
      words[i] = {0, 0, 0, 0};
      weights[i] = {0, 0, 0, 0};
      if (column < a.hidden_size) {
        words[i] = peek4(from + column);
        weights[i] = __ldg(reinterpret_cast<const float4*>(weight + column));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = base + i * sharing;
      if (index >= blocks) break;
      const int column = index * kBlockColumns + lane * 4;
      float4 x{__uint_as_float(words[i].x), __uint_as_float(words[i].y),
               __uint_as_float(words[i].z), __uint_as_float(words[i].w)};
      if (!is_input && column < a.hidden_size) x = collect(from + column, words[i]);
      sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      const float4 w = weights[i];
      const float four[4] = {x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w};
      put_staged<W>(staged, row, index, four);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) block.tail->reduction[warp] = sum;
}

/// 1 / rms of each row, from the sums that stage_norm() left. Read after the block's next meeting.
__device__ inline void find_norm_factors(const Block& block) {
  const DecodeArguments& a = block.a;
  const int row = static_cast<int>(threadIdx.x);
  if (row >= a.rows) return;
  const int sharing = warps_per_row(a.rows);
  float total = 0;
#pragma unroll 1
  for (int i = 0; i < sharing; ++i) total += block.tail->reduction[row * sharing + i];
  block.tail->norm_factors[row] =
      rsqrtf(__fdividef(total, static_cast<float>(a.hidden_size)) + a.epsilon);
}

/// What stage_heads() has asked for of one head: lane (i) has four dimensions of kAtOnce splits
/// and the statistics of split i.
template <int kAtOnce>
struct HeadParts {
  const uint32_t* parts;
  int splits;
  uint4 sums[kAtOnce] = {};
  uint2 statistics = {1, 1};

  __device__ HeadParts(const uint32_t* from, int count) : parts(from), splits(count) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < splits) sums[i] = peek4(split(i) + lane * 4);
    }
    if (lane < splits) statistics = peek2(split(lane) + kDecodeHeadDim);
  }

  __device__ const uint32_t* split(int i) const {
    return parts + i * (sizeof(Partial) / 4);
  }

  /// The attention's result in this lane's dimensions.
  __device__ void add_up(float (&sum)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float2 weight{-INFINITY, 0};  // largest score and sum of weights
    if (lane < splits) {
      const uint2 bits = collect(split(lane) + kDecodeHeadDim, statistics);
      weight = {__uint_as_float(bits.x), __uint_as_float(bits.y)};
    }
    __syncwarp();
    if (splits == 0) return;
    float factor = exp2f(weight.x - warp_max(weight.x));
    factor = __fdividef(factor, warp_sum(weight.y * factor));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < splits) accumulate(i, sums[i], factor, sum);
    }
#pragma unroll 1
    for (int i = kAtOnce; i < splits; ++i) {
      accumulate(i, peek4(split(i) + lane * 4), factor, sum);
    }
  }

 private:
  __device__ void accumulate(int i, uint4 words, float factor, float (&sum)[4]) const {
    const float4 part = collect(split(i) + static_cast<int>(threadIdx.x) % 32 * 4, words);
    const float f = __shfl_sync(0xFFFFFFFFU, factor, i);
    sum[0] += part.x * f;
    sum[1] += part.y * f;
    sum[2] += part.z * f;
    sum[3] += part.w * f;
  }
};

/// The splits of every head added up in order, staged as the output projection's activations. A
/// warp takes a head at a time.
template <typename W, int kAtOnce>
__device__ void stage_heads(const Block& block, Exchange& exchange, int first_head, int heads,
                            const Staged& staged) {
  const DecodeArguments& a = block.a;
  const Divisor per_row = Divisor::of(heads);
  const int total = a.rows * heads;
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x) / 32; item < total; item += kStreamWarps) {
    const int row = per_row.divide(item);
    HeadParts<kAtOnce> parts(partial_of(block, exchange, row, first_head + item - row * heads, 0),
                             splits_of(block.tail->context[row], block.tail->max_splits));
    float sum[4] = {0, 0, 0, 0};
    parts.add_up(sum);
    put_staged<W>(staged, row, item - row * heads, sum);
  }
}

/// Copies heads that publish_attended() has added up into shared memory: 16 bytes a thread.
template <typename W>
__device__ void stage_attended(const Block& block, Exchange& exchange, int first_head, int heads,
                               const Staged& staged) {
  constexpr int kVectors = kDecodeHeadDim / 8;  // of a head
  constexpr int kAtOnce = 8;
  const DecodeArguments& a = block.a;
  const Divisor per_row = Divisor::of(heads);
  const int total = a.rows * heads;
  const int vector = static_cast<int>(threadIdx.x) % kVectors;
  const int thread = static_cast<int>(threadIdx.x);
  const auto words_of = [&](int row, int head) {
    return partial_of(block, exchange, row, first_head + head, 0);
  };
#pragma unroll 1
  for (int base = thread / kVectors; base < total; base += kAtOnce * (kStreamThreads / kVectors)) {
    uint4 words[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * (kStreamThreads / kVectors);
      const int row = per_row.divide(item);
      if (item < total && block.tail->context[row] > 0) {
        words[i] = peek4(words_of(row, item - row * heads) + vector * 4);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * (kStreamThreads / kVectors);
      if (item >= total) break;
      const int row = per_row.divide(item);
      const int head = item - row * heads;
      uint4 eight{};
      if (block.tail->context[row] > 0) {
        eight = collect_bits(words_of(row, head) + vector * 4, words[i]);
      }
      *reinterpret_cast<uint4*>(staged.values + row * staged.stride + head * kDecodeHeadDim +
                                vector * 8) = eight;
    }
  }
  if constexpr (sizeof(W) == 1) {
#pragma unroll 1
    for (int item = thread; item < total; item += kStreamThreads) {
      const int row = per_row.divide(item);
      const int head = item - row * heads;
      uint32_t bits = 0;
      if (block.tail->context[row] > 0) {
        const uint32_t* from = words_of(row, head) + kDecodeHeadDim;
        bits = collect(from, peek2(from)).x;
      }
      staged.scales[head * kStreamRows + row] = __uint_as_float(bits);
    }
  }
}

}  // namespace glimpse::cuda::fused
