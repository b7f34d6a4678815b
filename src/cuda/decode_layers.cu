// One block per multiprocessor, all resident, in five phases per layer:
//
//   norm + qkv | q/k norm, rotary, KV store, attention | o_proj + residual | norm + gate, up, SiLU
//   | down_proj + residual
//
// Each product streams its matrix once, through a ring in shared memory (weight_ring.cuh) that runs
// ahead through all products: the memory stays busy while blocks wait for each other. A warp has
// columns of its own and needs only their activations: as soon as those are there it multiplies,
// without meeting the block; that comes once a product, before one warp for each sequence adds up
// the warps' sums. Results travel as words that say themselves whether they are there
// (decode_block.cuh): the reader polls the very words it needs, which costs one trip through L2
// instead of a fence, a counter and a load. The residual stream is published with each block's sum
// of squares, so that readers need no pass of their own to find a norm. Bytes moved per step: every
// weight, and the keys and values of each sequence, once.
//
// With few sequences a block's time is that of its instructions, one warp's one behind the other:
// neither bytes nor products are the limit. So the loop over a warp's tiles has one branch besides
// its own, around sums that are there already, and what it needs is worked out before.
#include "cuda/decode_layers.h"

#include <algorithm>

#include "cuda/decode_sums.cuh"

namespace glimpse::cuda {
namespace fused {

/// A layer's pointers into shared memory, where they cost no trip when needed; by one warp.
__device__ inline void fetch_layer(BlockTail& tail, const DecodeLayers& all, int index) {
  constexpr int kWords = sizeof(DecodeLayer) / sizeof(uint64_t);
  static_assert(kWords <= 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < kWords && index < tail.arguments.num_layers) {
    reinterpret_cast<uint64_t*>(&tail.layers[index % kLayersAhead])[lane] =
        reinterpret_cast<const uint64_t*>(&all.layers[index])[lane];
  }
}

// ---- taking back --------------------------------------------------------------------------------

/// By a warp: words `first` to `last` of a row.
__device__ inline void take_back_words(uint32_t* row, int first, int last) {
#pragma unroll 1
  for (int i = first + static_cast<int>(threadIdx.x) % 32; i < last; i += 32) take_back(row + i);
}

/// The same of pairs of a row of activations.
__device__ inline void take_back_pairs(uint32_t* row, int first, int last, bool weight_is_f8) {
#pragma unroll 1
  for (int i = first + static_cast<int>(threadIdx.x) % 32; i < last; i += 32) {
    take_back(row + pair_place(i, weight_is_f8));
  }
}

__device__ inline void take_back_stream(PublishedStream& stream, int row, const DecodeArguments& a,
                                        const TileRows& rows) {
  take_back_pairs(stream.words + row * (a.hidden_size / 2), rows.first / 2, rows.last / 2,
                  a.weight_is_f8);
  if (threadIdx.x % 32 == 0) take_back(stream.squares[row] + blockIdx.x);
}

/// What this block published of a layer through `exchange`, but for after_mlp, which it takes back
/// from `older`; by the warps from `first_warp` on.
__device__ inline void take_back_all(const Block& block, Exchange& exchange, Exchange& older,
                                     int first_warp) {
  const DecodeArguments& a = block.a;
  const int warp = this_warp() - first_warp;
  if (warp < 0) return;
  const int warps = kStreamWarps - first_warp;
  const auto rows_of = [&](DecodeProduct product) -> const TileRows& {
    return block.tail->shapes[static_cast<int>(product)].rows;
  };
  constexpr int kKinds = 4;
#pragma unroll 1
  for (int task = warp; task < a.rows * kKinds; task += warps) {
    const int row = task / kKinds;
    const int kind = task % kKinds;
    if (kind == 0) {
      const TileRows& rows = rows_of(DecodeProduct::qkv);
      const int width = (a.num_heads + 2 * a.num_kv_heads) * kHalf;
      take_back_words(exchange.qkv + row * width, rows.first / 2, rows.last / 2);
    } else if (kind == 1) {
      const TileRows& rows = rows_of(DecodeProduct::gate_up);
      take_back_pairs(exchange.inner + row * (a.intermediate_size / 2), rows.first / 2,
                      rows.last / 2, a.weight_is_f8);
    } else {
      take_back_stream(kind == 2 ? exchange.after_attention : older.after_mlp, row, a,
                       rows_of(DecodeProduct::down));
    }
  }
  constexpr int kVectors = sizeof(Partial) / 16;
  const int units = a.rows * a.num_kv_heads * block.tail->max_splits;
  const int group = a.num_heads / a.num_kv_heads;
#pragma unroll 1
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    const AttentionUnit unit =
        index == static_cast<int>(blockIdx.x) ? block.tail->unit : attention_unit(block, index);
    // From the last thread on down: the first warps have rows.
    const int first = kStreamThreads - 1 - static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int i = first; i < group * kVectors; i += 32 * warps) {
      const int head = unit.kv_head * group + i / kVectors;
      const int vector = i % kVectors;
      if (unit.split > 0) {
        take_back4(partial_of(block, exchange, unit.row, head, unit.split) + vector * 4);
        continue;
      }
      if (vector >= kHalf / 4) continue;
      take_back4(exchange.attended + (unit.row * a.num_heads + head) * kHalf + vector * 4);
    }
  }
}

// ---- products -----------------------------------------------------------------------------------

/// The residual stream that a product of layer `index` norms; null where there is no norm before
/// it.
__device__ inline const PublishedStream* normed_by(const Block& block, DecodeProduct product,
                                                   int index) {
  Exchange(&exchanges)[2] = block.workspace->exchanges;
  if (product == DecodeProduct::qkv) return &exchanges[(index + 1) % 2].after_mlp;
  if (product == DecodeProduct::gate_up) return &exchanges[index % 2].after_attention;
  return nullptr;
}

/// What the blocks published as its activations.
__device__ inline const uint32_t* activations_of(const Block& block, DecodeProduct product,
                                                 int index) {
  const Exchange& exchange = block.workspace->exchanges[index % 2];
  switch (product) {
    case DecodeProduct::qkv:
      return block.workspace->exchanges[(index + 1) % 2].after_mlp.words;
    case DecodeProduct::o:
      return exchange.attended;
    case DecodeProduct::gate_up:
      return exchange.after_attention.words;
    default:
      return exchange.inner;
  }
}

/// Multiplies this warp's columns of a product; what is left to do behind a meeting of the block is
/// add_up_pass() of the last pass, usually the only one, whose first tile this returns.
template <typename W, bool kMany, typename Ring>
__device__ int multiply_product(const Block& block, Ring& ring, DecodeProduct product, int index) {
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  const Slice slice = block.tail->slices[this_warp()][static_cast<int>(product)];
  Activations<W, kMany> x(activations_of(block, product, index), shape.columns, block.a.rows,
                          slice);
  if (slice.units > 0) x.ask(slice.groups(0));
  // The last warps norm the rows: the first ones, which add them up, are behind.
  RowSquares squares;
  const int normed_row = kStreamWarps - 1 - this_warp();
  const bool has_norm = Block::is_wide(product) && normed_row < block.a.rows;
  if (has_norm) squares.ask(normed_by(block, product, index)->squares[normed_row]);
  // The next norm's weights and the next product's scales are on their way while the activations
  // are waited for.
  const float* norm = norm_behind(block, product, index);
  const int column = static_cast<int>(threadIdx.x) - (kStreamThreads - kNormFloats);
  const bool has_weight =
      norm != nullptr && column >= 0 && column < shape.rows.last - shape.rows.first;
  const float norm_weight = has_weight ? __ldg(norm + shape.rows.first + column) : 0;
  const auto next = static_cast<DecodeProduct>((static_cast<int>(product) + 1) % kDecodeProducts);
  NextScales<W, kMany> next_scales;
  next_scales.load(block, next, index + (product == DecodeProduct::down ? 1 : 0));
  const auto keep_next = [&] {
    if (has_weight) block.norm_weights[column] = norm_weight;
    next_scales.store(block, next);
  };
  int first_tile = 0;
#pragma unroll 1
  for (;;) {
    const int end = min(first_tile + shape.pass_tiles, shape.rows.tiles);
#pragma unroll 1
    for (int unit = 0; unit < slice.units; ++unit) {
      const int groups = slice.groups(unit);
      const bool is_held = slice.units == 1 && first_tile > 0;
      if (!is_held) {
        x.wait(groups);
        if (unit + 1 < slice.units) x.ask(slice.groups(unit + 1));
      }
      if (first_tile == 0 && unit == 0) keep_next();
      const int begin = (slice.first + unit * slice.unit_groups) * kGroupColumns<W>;
      TileWalk walk = tile_walk<kMany>(block, product, first_tile, begin, unit > 0);
      multiply_columns(ring, x, groups, begin % kBlockColumns != 0 ? 1 : 0, end - first_tile, walk);
    }
    if (slice.units == 0) {
      clear_sums<kMany>(block, product, end - first_tile);
      if (first_tile == 0) keep_next();
    }
    if (first_tile == 0 && has_norm) {
      const float factor = squares.norm_factor(block.a);
      if (threadIdx.x % 32 == 0) block.tail->factors[normed_row] = factor;
    }
    if (end >= shape.rows.tiles) return first_tile;
    __syncthreads();
    add_up_pass<kMany>(block, product, index, first_tile);
    first_tile = end;
    if (slice.units > 1) {
      x.restart();
      x.ask(slice.groups(0));
    }
    __syncthreads();
  }
}

/// From a finished qkv product to published attention.
template <bool kKvF8, bool kMany>
__device__ __forceinline__ void attend_layer(const Block& block, int index, int first_tile) {
  Exchange& exchange = block.workspace->exchanges[index % 2];
  const DecodeLayer& layer = block.tail->layers[index % kLayersAhead];
  AttentionStart<kKvF8> start;
  begin_attention<kKvF8>(block, layer, block.tail->unit, start);
  __syncthreads();
  add_up_pass<kMany>(block, DecodeProduct::qkv, index, first_tile);
  if (kMany) __syncthreads();  // the attention has the sums' place
  const int idle_warp = attention<kKvF8, kMany>(block, layer, start, exchange);
  if (index > 0) {
    take_back_all(block, block.workspace->exchanges[(index + 1) % 2], exchange, idle_warp);
  }
}

/// What each block works out once, and its part of the residual stream, published.
template <typename W, bool kMany>
__device__ void prepare_block(const Block& block) {
  const DecodeArguments& a = block.a;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < a.rows) block.tail->context[thread] = a.context_length[thread];
  if (thread < kDecodeProducts) {
    block.tail->shapes[thread] = product_shape<kMany>(block, static_cast<DecodeProduct>(thread));
  }
  if (thread == 0) {
    block.tail->max_splits =
        max(1, min(kDecodeMaxSplits, static_cast<int>(gridDim.x) / (a.rows * a.num_kv_heads)));
  }
  __syncthreads();
  if (thread == 0) block.tail->unit = attention_unit(block, blockIdx.x);
  if (thread < kStreamWarps * kDecodeProducts) {
    const int warp = thread / kDecodeProducts;
    const int product = thread % kDecodeProducts;
    block.tail->slices[warp][product] =
        slice_of<W>(block.tail->shapes[product], a.unit_groups, warp);
  }
  if (this_warp() < kDecodeProducts) prepare_copies<W>(*block.tail, this_warp());
  __syncthreads();
  NextScales<W, kMany> scales;
  scales.load(block, DecodeProduct::qkv, 0);
  scales.store(block, DecodeProduct::qkv);
  // The last step's words, which may be in the way of this one's.
  Exchange(&exchanges)[2] = block.workspace->exchanges;
#pragma unroll 1
  for (Exchange& exchange : exchanges) take_back_all(block, exchange, exchange, 0);
  __syncthreads();
  if (thread == 0) __threadfence();
  __syncthreads();
  const int row = thread / 32;
  if (row >= a.rows) return;
  // Squares are read four blocks at a time.
  const int idle = static_cast<int>(gridDim.x) + thread % 32;
  if (blockIdx.x == 0 && thread % 32 < 4 && idle < kMaxBlocks) {
    for (Exchange& exchange : exchanges) {
      publish(exchange.after_attention.squares[row] + idle, 0);
      publish(exchange.after_mlp.squares[row] + idle, 0);
    }
  }
  const TileRows& rows = block.tail->shapes[static_cast<int>(DecodeProduct::down)].rows;
  const float* norm = block.tail->layers[0].input_layernorm;
  float squares = 0;
#pragma unroll 1
  for (int output = rows.first + thread % 32 * 2; output < rows.last; output += 64) {
    const int at = row * a.hidden_size + output;
    const float2 x = __ldcg(reinterpret_cast<const float2*>(a.hidden + at));
    *reinterpret_cast<float2*>(block.residual + row * (rows.last - rows.first) + output -
                               rows.first) = x;
    squares += publish_residual(block, exchanges[1].after_mlp, at, x,
                                __ldg(reinterpret_cast<const float2*>(norm + output)));
  }
  __syncwarp();
  squares = warp_sum(squares);
  if (thread % 32 == 0) {
    publish(exchanges[1].after_mlp.squares[row] + blockIdx.x, __float_as_uint(squares));
  }
}

// All products of all layers run through one copy of the code: fetching instructions costs as much
// as running them here. With many rows each lane asks for its own operands.
// spill: up to 17 words that live across a layer's attention or a product; the loops over tiles and
// keys have none.
template <typename W, bool kKvF8, bool kMany>
__global__ void __launch_bounds__(kStreamThreads, 1)
    decode_all_layers(const __grid_constant__ DecodeArguments a,
                      const __grid_constant__ DecodeLayers layers) {
  if (threadIdx.x == 0) tail_of_block().arguments = a;
  __syncthreads();
  const Block block = this_block<kMany>();
  for (int i = this_warp(); i < kLayersAhead - 1; i += kStreamWarps) {
    fetch_layer(*block.tail, layers, i);
  }
  prepare_block<W, kMany>(block);
  using Ring = WeightRing<StepCursor>;
  Ring ring(StepCursor(), shared_memory(), a.unit_groups, a.weight_policy);
#pragma unroll 1
  for (int step = 0; step < a.num_layers * kDecodeProducts; ++step) {
    const int index = step / kDecodeProducts;
    const auto product = static_cast<DecodeProduct>(step % kDecodeProducts);
    // While the attention is waited for.
    if (product == DecodeProduct::o && threadIdx.x / 32 == kStreamWarps - 2) {
      fetch_layer(*block.tail, layers, index + kLayersAhead - 1);
    }
    const int first_tile = multiply_product<W, kMany>(block, ring, product, index);
    if (product == DecodeProduct::qkv) {
      attend_layer<kKvF8, kMany>(block, index, first_tile);
      __syncthreads();  // the attention's shared memory changes hands
      continue;
    }
    __syncthreads();  // sums wait in the slots
    add_up_pass<kMany>(block, product, index, first_tile);
    if (kMany) __syncthreads();  // the next product's sums have the same place
    // A thread of a warp that has no sums to add, if there is one; see decode_block.cuh.
    if (threadIdx.x == kStreamThreads - 1) {
      if (product == DecodeProduct::o) arrive(block);
      if (product == DecodeProduct::gate_up) wait(block, index + 1);
    }
  }
  // The last block to leave makes the workspace ready for the next step.
  __syncthreads();
  if (threadIdx.x == 0) {
    if (atomicAdd(&block.workspace->finished, 1U) + 1 == gridDim.x) {
      block.workspace->barrier = 0;
      block.workspace->finished = 0;
    }
  }
}

}  // namespace fused

namespace {

using namespace fused;

using Kernel = void (*)(DecodeArguments, DecodeLayers);

template <bool kMany>
Kernel kernel_of(bool weight_is_f8, bool kv_is_f8) {
  if (weight_is_f8) {
    return kv_is_f8 ? decode_all_layers<Fp8, true, kMany> : decode_all_layers<Fp8, false, kMany>;
  }
  return kv_is_f8 ? decode_all_layers<Bf16, true, kMany> : decode_all_layers<Bf16, false, kMany>;
}

Kernel kernel_of(const DecodeArguments& a) {
  return a.rows > kFewRows ? kernel_of<true>(a.weight_is_f8, a.kv_is_f8)
                           : kernel_of<false>(a.weight_is_f8, a.kv_is_f8);
}

/// The hint that weights leave L2 first. It is an argument of the kernel, from where copies take it
/// without an instruction.
__device__ uint64_t device_policy;
uint64_t weight_policy = 0;

__global__ void make_policy() {
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(device_policy));
}

/// More blocks than the exchange has room for stay idle.
int decode_blocks(int num_multiprocessors) {
  return num_multiprocessors < kMaxBlocks ? num_multiprocessors : kMaxBlocks;
}

/// The most scales of weights that a block needs of a product.
int most_weight_scales(const DecodeArguments& a, int blocks) {
  const auto scales = [&](int matrices, int outputs, int columns) {
    // The last block's tiles begin before its own rows.
    const int rows = 2 * ((outputs / 2 + blocks - 1) / blocks) + 2 * kHalfRows;
    const int row_blocks = (rows + kBlockColumns - 2) / kBlockColumns + 1;
    return matrices * row_blocks * ((columns + kBlockColumns - 1) / kBlockColumns);
  };
  const int attended = a.num_heads * kDecodeHeadDim;
  const int qkv = attended + 2 * a.num_kv_heads * kDecodeHeadDim;
  return std::max({scales(1, qkv, a.hidden_size), scales(1, a.hidden_size, attended),
                   scales(2, a.intermediate_size, a.hidden_size),
                   scales(1, a.hidden_size, a.intermediate_size)});
}

/// The most groups of a unit: fewer where a block's share of the residual stream needs the room. 0
/// if none leave enough.
int unit_groups(const DecodeArguments& a, int blocks) {
  const int floats = residual_floats(a.rows, a.hidden_size, blocks);
  for (int most = kUnitGroups; most > 0; --most) {
    const auto of_columns = [&](int columns) {
      const int groups = columns * (a.weight_is_f8 ? 1 : 2) / kGroupBytes;
      return unit_groups_of((groups + kStreamWarps - 1) / kStreamWarps, most);
    };
    const int needed =
        std::max({of_columns(a.hidden_size), of_columns(a.num_heads * kDecodeHeadDim),
                  of_columns(a.intermediate_size)});
    if (a.rows > kFewRows ? Layout<true>::wide_bytes(needed, floats) >= kLeastWideBytes<true>
                          : Layout<false>::wide_bytes(needed, floats) >= kLeastWideBytes<false>) {
      return needed;
    }
  }
  return 0;
}

}  // namespace

bool decode_supports(const DecodeArguments& a, int num_multiprocessors) {
  const int alignment = 128 / (a.weight_is_f8 ? 1 : 2);  // whole lines of weights
  const int group = a.num_kv_heads > 0 ? a.num_heads / a.num_kv_heads : 0;
  if (a.rows < 1 || a.rows > kDecodeRows || a.num_layers < 1 || a.num_layers > kDecodeMaxLayers ||
      a.num_kv_heads < 1 || a.num_heads > kDecodeMaxHeads || a.num_heads % a.num_kv_heads != 0 ||
      a.num_heads + 2 * a.num_kv_heads > kMaxQkvHeads || (group != 1 && group != 2 && group != 4) ||
      a.hidden_size % alignment != 0 || a.intermediate_size % alignment != 0 ||
      a.hidden_size > kMaxHidden || a.intermediate_size > kMaxIntermediate) {
    return false;
  }
  const int blocks = decode_blocks(num_multiprocessors);
  return residual_floats(1, a.hidden_size, blocks) <= kNormFloats &&
         (!a.weight_is_f8 || most_weight_scales(a, blocks) <= kMaxWeightScales) &&
         unit_groups(a, blocks) > 0;
}

int64_t decode_workspace_bytes() {
  return static_cast<int64_t>(sizeof(Workspace));
}

cudaError_t prepare_decode() {
  make_policy<<<1, 1>>>();
  const cudaError_t copied =
      cudaMemcpyFromSymbol(&weight_policy, device_policy, sizeof(weight_policy));
  if (copied != cudaSuccess) return copied;
  for (const bool weight_is_f8 : {false, true}) {
    for (const bool kv_is_f8 : {false, true}) {
      for (const Kernel kernel :
           {kernel_of<false>(weight_is_f8, kv_is_f8), kernel_of<true>(weight_is_f8, kv_is_f8)}) {
        const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
        if (error != cudaSuccess) return error;
      }
    }
  }
  return cudaSuccess;
}

cudaError_t launch_decode(const DecodeArguments& arguments, const DecodeLayers& layers,
                          int num_multiprocessors, cudaStream_t stream) {
  DecodeArguments complete = arguments;
  complete.weight_policy = weight_policy;
  complete.unit_groups = unit_groups(arguments, decode_blocks(num_multiprocessors));
  // The runtime takes arguments by address and copies them.
  void* parameters[] = {&complete, const_cast<DecodeLayers*>(&layers)};
  return cudaLaunchCooperativeKernel(
      reinterpret_cast<const void*>(kernel_of(arguments)),
      dim3(static_cast<unsigned>(decode_blocks(num_multiprocessors))), dim3(kStreamThreads),
      parameters, kSharedBytes, stream);
}

}  // namespace glimpse::cuda
