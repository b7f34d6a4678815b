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
    uint4 words[kAtOnce];
    int from[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamWarps;
      const int row = per_row.divide(item);
      const int column = (item - row * per_row.d) * 2 * kBlockColumns + lane * 8;
      from[i] = (row * a.intermediate_size + first + column) / 2;
      words[i] = {kNothing, kNothing, kNothing, kNothing};
      if (item < total && column < count) words[i] = peek4(inner + from[i]);
    }
    await(words, [&](int i) { return inner + from[i]; });
    __syncwarp();
    // All together: what one waits for, the others hide.
    float scales[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const uint4 eight{~words[i].x, ~words[i].y, ~words[i].z, ~words[i].w};
      words[i] = staged_words_bf16<W>(eight, scales[i]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kStreamWarps;
      if (item >= total) break;
      const int row = per_row.divide(item);
      put_staged_bf16<W>(staged, row, (item - row * per_row.d) * 2, blocks, words[i], scales[i]);
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
  float total = 0;
  constexpr int kAtOnce = kMany ? 8 : 4;
#pragma unroll 1
  for (int base = warp % sharing; base < blocks; base += kAtOnce * sharing) {
    float sum = 0;
    uint4 words[kAtOnce];
    float4 weights[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int column = (base + i * sharing) * kBlockColumns + lane * 4;
      const uint32_t nothing = is_input ? 0 : kNothing;
      words[i] = {nothing, nothing, nothing, nothing};
      weights[i] = {0, 0, 0, 0};
      if (column < a.hidden_size) {
        words[i] = peek4(from + column);
        weights[i] = __ldg(reinterpret_cast<const float4*>(weight + column));
      }
    }
    if (!is_input) {
      await(words, [&](int i) { return from + (base + i * sharing) * kBlockColumns + lane * 4; });
      __syncwarp();
    }
    // All together: what one waits for, the others hide. Beyond the row x is 0.
    float scales[kAtOnce];
    uint2 staged_as[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float4 x = decoded(words[i]);
      if (is_input) {
        x = {__uint_as_float(words[i].x), __uint_as_float(words[i].y), __uint_as_float(words[i].z),
             __uint_as_float(words[i].w)};
      }
      sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      const float4 w = weights[i];
      const float four[4] = {x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w};
      staged_as[i] = staged_words<W>(four, scales[i]);
    }
    total += warp_sum(sum);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = base + i * sharing;
      if (index >= blocks) break;
      put_staged<W>(staged, row, index, staged_as[i], scales[i]);
    }
  }
  if (lane == 0) block.tail->reduction[warp] = total;
}

/// 1 / rms of each row, from the sums that stage_norm() left. Read after the block's next meeting.
__device__ inline void find_norm_factors(const Block& block) {
  const DecodeArguments& a = block.a;
  const int row = static_cast<int>(threadIdx.x);
  if (row >= a.rows) return;
  const int sharing = warps_per_row(a.rows);
  float total = 0;
#pragma unroll
  for (int i = 0; i < kStreamWarps; ++i) {
    if (i < sharing) total += block.tail->reduction[row * sharing + i];
  }
  block.tail->norm_factors[row] =
      rsqrtf(__fdividef(total, static_cast<float>(a.hidden_size)) + a.epsilon);
}

/// Copies heads that publish_attended() has added up into shared memory: 16 bytes a thread.
template <typename W, bool kMany>
__device__ void stage_attended(const Block& block, Exchange& exchange, int first_head, int heads,
                               const Staged& staged) {
  constexpr int kVectors = kDecodeHeadDim / 8;  // of a head
  constexpr int kAtOnce = kMany ? 8 : 2;
  const DecodeArguments& a = block.a;
  const Divisor per_row = Divisor::of(heads);
  const int total = a.rows * heads;
  const int thread = static_cast<int>(threadIdx.x);
  const int vector = thread % kVectors;
  // Nothing comes of a sequence without keys.
  const auto words_of = [&](int item) -> uint32_t* {
    const int row = per_row.divide(item);
    if (item >= total || block.tail->context[row] == 0) return nullptr;
    return partial_of(block, exchange, row, first_head + item - row * heads, 0);
  };
  constexpr uint4 kNoWords{kNothing, kNothing, kNothing, kNothing};
#pragma unroll 1
  for (int base = 0; base < total; base += kAtOnce * (kStreamThreads / kVectors)) {
    uint4 words[kAtOnce + 1];
    const uint32_t* from[kAtOnce + 1];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const uint32_t* head = words_of(base + thread / kVectors + i * (kStreamThreads / kVectors));
      from[i] = head != nullptr ? head + vector * 4 : nullptr;
      words[i] = head != nullptr ? peek4(from[i]) : kNoWords;
    }
    // The scales of these heads, the first threads one each.
    constexpr int kHeads = kAtOnce * (kStreamThreads / kVectors);
    words[kAtOnce] = kNoWords;
    from[kAtOnce] = nullptr;
    if (sizeof(W) == 1 && thread < kHeads) {
      const uint32_t* head = words_of(base + thread);
      from[kAtOnce] = head != nullptr ? head + kDecodeHeadDim : nullptr;
      if (head != nullptr) words[kAtOnce] = peek4(from[kAtOnce]);
    }
    await(words, [&](int i) { return from[i]; });
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + thread / kVectors + i * (kStreamThreads / kVectors);
      if (item >= total) break;
      const int row = per_row.divide(item);
      uint16_t* const to =
          staged.values + row * staged.stride + (item - row * heads) * kDecodeHeadDim + vector * 8;
      *reinterpret_cast<uint4*>(to) = {~words[i].x, ~words[i].y, ~words[i].z, ~words[i].w};
    }
    if (sizeof(W) == 1 && thread < kHeads && base + thread < total) {
      const int row = per_row.divide(base + thread);
      staged.scales[(base + thread - row * heads) * kStreamRows + row] =
          __uint_as_float(~words[kAtOnce].x);
    }
  }
}

}  // namespace glimpse::cuda::fused
