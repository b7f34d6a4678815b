// One block per multiprocessor, all resident, in five phases per layer:
//
//   norm + qkv | q/k norm, rotary, KV store, attention | o_proj + residual | norm + gate, up, SiLU
//   | down_proj + residual
//
// Each product streams its matrix once, through a ring in shared memory (weight_ring.cuh) that runs
// ahead through all products: the memory stays busy while blocks wait for each other. Results
// travel as words that say themselves whether they are there (decode_block.cuh): the reader of a
// phase polls the very words it needs, which costs one trip through L2 instead of a fence, a
// counter and a load. What every block needs whole (the residual stream, the MLP's inner
// activations) is published with each block's largest magnitude and sum of squares, so that readers
// need no pass of their own to find a norm or a scale. Bytes moved per step: every weight, and the
// keys and values of each sequence, once.
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

template <int kWords>
__device__ void take_back_row(PublishedRows<kWords>& rows, int row, int width, int first,
                              int last) {
  take_back_words(rows.words + row * width, first, last);
  uint32_t* const statistics = rows.statistics[row][blockIdx.x];
  if (threadIdx.x % 32 < 2) take_back(statistics + threadIdx.x % 32);
}

/// What this block published of a layer through `exchange`, but for after_mlp, which it takes back
/// from `older`; by the warps from `first_warp` on.
template <bool kMany>
__device__ void take_back_all(const Block& block, Exchange& exchange, Exchange& older,
                              int first_warp) {
  const DecodeArguments& a = block.a;
  const int warp = static_cast<int>(threadIdx.x) / 32 - first_warp;
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
    if (kind == 0) {  // bf16 pairs
      const TileRows& rows = rows_of(DecodeProduct::qkv);
      const int width = (a.num_heads + 2 * a.num_kv_heads) * kHalf;
      take_back_words(exchange.qkv + row * width, rows.first / 2, rows.last / 2);
    } else if (kind == 1) {
      const TileRows& rows = rows_of(DecodeProduct::gate_up);
      take_back_row(exchange.inner, row, a.intermediate_size / 2, rows.first / 2, rows.last / 2);
    } else {
      constexpr int kPerWord = kMany ? 2 : 1;
      const TileRows& rows = rows_of(DecodeProduct::down);
      take_back_row(kind == 2 ? exchange.after_attention : older.after_mlp, row,
                    a.hidden_size / kPerWord, rows.first / kPerWord, rows.last / kPerWord);
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
      const int of_row = unit.row * a.num_heads + head;
      if (vector < kHalf / 4) take_back4(exchange.attended + of_row * kHalf + vector * 4);
      if (vector == kHalf / 4) take_back(exchange.attended_scales + of_row);
    }
  }
}

// ---- products -----------------------------------------------------------------------------------

/// The activations of a product other than down; `index` is its layer. What stage_norm() returns,
/// or 0.
template <typename W, bool kMany>
__device__ float stage(const Block& block, int index, DecodeProduct product, int first_column,
                       int count, const Staged& staged) {
  Exchange& exchange = block.workspace->exchanges[index % 2];
  if (product == DecodeProduct::o) {
    stage_attended<W, kMany>(block, exchange, first_column / kDecodeHeadDim, count / kDecodeHeadDim,
                             staged);
    return 0;
  }
  const auto& stream = product == DecodeProduct::qkv
                           ? block.workspace->exchanges[(index + 1) % 2].after_mlp
                           : exchange.after_attention;
  if constexpr (kMany) {
    return stage_norm_pairs<W>(block, stream, staged);
  } else {
    return stage_norm<W>(block, stream, staged);
  }
}

/// Stages the activations of a product and multiplies them; what is left to do is add_up_pass() of
/// the last pass, usually the only one.
template <typename W, bool kMany, typename Ring>
__device__ LastPass multiply_product(const Block& block, Ring& ring, DecodeProduct product,
                                     int index) {
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  // The next norm's weights are on their way while the activations are waited for.
  const float* norm = norm_behind(block, product, index);
  const int column = static_cast<int>(threadIdx.x);
  const bool has_weight = norm != nullptr && column < shape.rows.last - shape.rows.first;
  const float norm_weight = has_weight ? __ldg(norm + shape.rows.first + column) : 0;
  // So are the next product's scales.
  const auto next = static_cast<DecodeProduct>((static_cast<int>(product) + 1) % kDecodeProducts);
  NextScales<W, kMany> next_scales;
  next_scales.load(block, next, index + (product == DecodeProduct::down ? 1 : 0));
  LastPass pass{&shape.pass_over(0), 0, 1};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool is_normed = product == DecodeProduct::qkv || product == DecodeProduct::gate_up;
  const auto& inner = block.workspace->exchanges[index % 2].inner;
  typename StagedPairs<W, kMany>::Words inner_words;
#pragma unroll
  for (uint4& words : inner_words.at) forget(words);
  StagedScale of_row{1, 1};  // of down's activations, where a row has one
  int first_column = 0;
  bool is_staged = false;
#pragma unroll 1
  for (;;) {
    const int count = min(shape.chunk_columns, shape.columns - first_column);
    // With many rows all of a row has one scale, but for heads.
    const bool shares_scale = kMany && product != DecodeProduct::o;
    const Staged staged =
        block.stage_of(staged_stride<W>(count), shares_scale ? 0 : Layout<kMany>::kRows);
    typename Ring::Registers registers;
    // While the last activations are on their way. Many rows are asked for first.
    if (!kMany) ring.begin(*pass.plan, registers);
    if (!is_staged) {
      float squares = 0;
      if (product == DecodeProduct::down) {
        auto pairs = inner_pairs<W, kMany>(block, inner, first_column, count, inner_words);
        if (pairs.share.row < block.a.rows) {
          if (!kMany || first_column == 0) pairs.ask();
          if (first_column == 0) of_row = inner_scale<W, kMany>(block, inner);
          pairs.put(staged, of_row);
        }
      } else {
        squares = stage<W, kMany>(block, index, product, first_column, count, staged);
      }
      if (has_weight) block.norm_weights[column] = norm_weight;
      if (first_column == 0) next_scales.store(block, next);
      __syncthreads();
      const bool has_factor = kMany && sizeof(W) == 1;  // already
      if (!has_factor && is_normed && warp < block.a.rows) {
        pass.factor = norm_factor(block.a, squares);
      }
      is_staged = true;
    }
    if (kMany) ring.begin(*pass.plan, registers);
    // The next chunk's activations are on their way while this one's are multiplied.
    const int next_column = first_column + count;
    if (kMany && product == DecodeProduct::down && next_column < shape.columns &&
        pass.first_tile + Layout<kMany>::kTiles >= shape.rows.tiles) {
      auto pairs =
          inner_pairs<W, kMany>(block, inner, next_column,
                                min(shape.chunk_columns, shape.columns - next_column), inner_words);
      if (pairs.share.row < block.a.rows) pairs.ask();
    }
    const RingPass ring_pass{*pass.plan,
                             shape.rows,
                             pass.first_tile,
                             count * static_cast<int>(sizeof(W)) / kUnitBytes,
                             scale_table(block, product, first_column),
                             shape.chunks_add_up && first_column > 0};
    ring.multiply(ring_pass, registers, staged, block.a.rows, sums_of<kMany>(block));
    const bool is_last_chunk = next_column >= shape.columns;
    int first_tile = pass.first_tile + Layout<kMany>::kTiles;
    if (first_tile >= shape.rows.tiles) {
      if (is_last_chunk) return pass;
      first_tile = 0;
      first_column += count;
      is_staged = false;
      if (shape.chunks_add_up) {
        __syncthreads();
        continue;
      }
    }
    __syncthreads();
    add_up_pass<kMany>(block, product, index, pass, is_last_chunk);
    pass.first_tile = first_tile;
    pass.plan = &shape.pass_over(first_column);
    if (first_tile > 0) {
      pass.plan = &block.tail->pass;
      __syncthreads();
      if (threadIdx.x == 0) block.tail->pass = plan_pass<W, kMany>(shape, first_tile, first_column);
    }
    __syncthreads();
  }
}

/// From a finished qkv product to published attention.
template <typename W, bool kKvF8, bool kMany>
__device__ __forceinline__ void attend_layer(const Block& block, int index, const LastPass& pass) {
  Exchange& exchange = block.workspace->exchanges[index % 2];
  const DecodeLayer& layer = block.tail->layers[index % kLayersAhead];
  AttentionStart<kKvF8> start;
  begin_attention<kKvF8>(block, layer, block.tail->unit, start);
  __syncthreads();
  add_up_pass<kMany>(block, DecodeProduct::qkv, index, pass, true);
  const int idle_warp = attention<W, kKvF8, kMany>(block, layer, start, exchange);
  if (index > 0) {
    take_back_all<kMany>(block, block.workspace->exchanges[(index + 1) % 2], exchange, idle_warp);
  }
}

/// What each block works out once, and its part of the residual stream, published.
template <typename W, bool kMany>
__device__ void prepare_block(const Block& block) {
  const DecodeArguments& a = block.a;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < a.rows) block.tail->context[thread] = a.context_length[thread];
  if (thread < kDecodeProducts) {
    block.tail->shapes[thread] = product_shape<W, kMany>(a, static_cast<DecodeProduct>(thread));
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
    block.tail->first_runs[warp][product] = first_run<W, kMany>(block.tail->shapes[product], warp);
  }
#pragma unroll 1
  for (int i = thread; i < kSumItems * kDecodeProducts; i += kStreamThreads) {
    const auto product = static_cast<DecodeProduct>(i / kSumItems);
    const ProductShape& shape = block.tail->shapes[i / kSumItems];
    block.tail->first_sums[i / kSumItems][i % kSumItems] = sum_item<kMany>(
        shape.rows, product == DecodeProduct::gate_up, shape.pass, 0, i % kSumItems);
  }
  __syncthreads();
  // The last unit of a row reads scales beyond the row's end, beside weights of zero: they must be
  // numbers. Those of the weights lie behind the activations'.
  constexpr int kScales = (Layout<kMany>::kScaleBytes + Layout<kMany>::kWeightScaleBytes) / 4;
#pragma unroll 1
  for (int i = thread; i < kScales; i += kStreamThreads) block.staged_scales[i] = 0;
  __syncthreads();
  NextScales<W, kMany> scales;
  scales.load(block, DecodeProduct::qkv, 0);
  scales.store(block, DecodeProduct::qkv);
  // The last step's words, which may be in the way of this one's.
  Exchange(&exchanges)[2] = block.workspace->exchanges;
#pragma unroll 1
  for (Exchange& exchange : exchanges) take_back_all<kMany>(block, exchange, exchange, 0);
  __syncthreads();
  if (thread == 0) __threadfence();
  __syncthreads();
  const int row = thread / 32;
  if (row >= a.rows) return;
  const TileRows& rows = block.tail->shapes[static_cast<int>(DecodeProduct::down)].rows;
  const float* norm = block.tail->layers[0].input_layernorm;
  SumStatistics statistics;
#pragma unroll 1
  for (int output = rows.first + thread % 32 * 2; output < rows.last; output += 64) {
    const int at = row * a.hidden_size + output;
    const float2 x = __ldcg(reinterpret_cast<const float2*>(a.hidden + at));
    *reinterpret_cast<float2*>(block.residual + row * (rows.last - rows.first) + output -
                               rows.first) = x;
    publish_residual<kMany>(exchanges[1].after_mlp, at, x,
                            __ldg(reinterpret_cast<const float2*>(norm + output)), statistics);
  }
  __syncwarp();
  statistics.publish_to<kMany>(exchanges[1].after_mlp.statistics[row][blockIdx.x]);
}

// All products of all layers run through one copy of the code: fetching instructions costs as much
// as running them here. `kMany` has room for more rows' activations and asks for more of them at
// once; few are quicker with the shorter code and the larger ring.
// spill: up to 17 words that live across a layer's attention or, once a product, its beginning; the
// loops over weights, activations and keys have none.
template <typename W, bool kKvF8, bool kMany>
__global__ void __launch_bounds__(kStreamThreads, 1)
    decode_all_layers(const __grid_constant__ DecodeArguments a,
                      const __grid_constant__ DecodeLayers layers) {
  if (threadIdx.x == 0) tail_of_block().arguments = a;
  __syncthreads();
  const Block block = this_block<kMany>();
  if (threadIdx.x / 32 < kLayersAhead - 1) {
    fetch_layer(*block.tail, layers, static_cast<int>(threadIdx.x) / 32);
  }
  prepare_block<W, kMany>(block);
  using Cursor = StepCursor<W, kMany>;
  using Ring = WeightRing<W, kMany, kRingDepth, Cursor>;
  Ring ring(Cursor(), shared_memory(), a.weight_policy);
#pragma unroll 1
  for (int step = 0; step < a.num_layers * kDecodeProducts; ++step) {
    const int index = step / kDecodeProducts;
    const auto product = static_cast<DecodeProduct>(step % kDecodeProducts);
    // While the attention is waited for.
    if (product == DecodeProduct::o && threadIdx.x / 32 == kStreamWarps - 2) {
      fetch_layer(*block.tail, layers, index + kLayersAhead - 1);
    }
    const LastPass pass = multiply_product<W, kMany>(block, ring, product, index);
    if (product == DecodeProduct::qkv) {
      attend_layer<W, kKvF8, kMany>(block, index, pass);
      __syncthreads();  // the attention's shared memory changes hands
      continue;
    }
    __syncthreads();  // sums wait in the slots
    add_up_pass<kMany>(block, product, index, pass, true);
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
    const int rows = 2 * ((outputs / 2 + blocks - 1) / blocks);
    const int row_blocks = (rows + kBlockColumns - 2) / kBlockColumns + 1;
    constexpr int kParts = RingUnit<false>::kParts;
    const int column_blocks = (columns + kBlockColumns - 1) / kBlockColumns;
    return matrices * row_blocks * ((column_blocks + kParts - 1) / kParts * kParts);
  };
  const int attended = a.num_heads * kDecodeHeadDim;
  const int qkv = attended + 2 * a.num_kv_heads * kDecodeHeadDim;
  return std::max({scales(1, qkv, a.hidden_size), scales(1, a.hidden_size, attended),
                   scales(2, a.intermediate_size, a.hidden_size),
                   scales(1, a.hidden_size, a.intermediate_size)});
}

}  // namespace

bool decode_supports(const DecodeArguments& a, int num_multiprocessors) {
  const int alignment = a.weight_is_f8 ? kUnitColumns<Fp8> : kUnitColumns<Bf16>;
  const int group = a.num_kv_heads > 0 ? a.num_heads / a.num_kv_heads : 0;
  if (a.rows < 1 || a.rows > kDecodeRows || a.num_layers < 1 || a.num_layers > kDecodeMaxLayers ||
      a.num_kv_heads < 1 || a.num_heads > kDecodeMaxHeads || a.num_heads % a.num_kv_heads != 0 ||
      a.num_heads + 2 * a.num_kv_heads > kMaxQkvHeads || (group != 1 && group != 2 && group != 4) ||
      a.hidden_size % alignment != 0 || a.intermediate_size % alignment != 0 ||
      a.hidden_size > kMaxHidden || a.intermediate_size > kMaxIntermediate) {
    return false;
  }
  // A norm's row is staged whole, in whole blocks of columns; a block keeps its part of the
  // residual stream.
  const int blocks = decode_blocks(num_multiprocessors);
  const int hidden_of_block = 2 * ((a.hidden_size / 2 + blocks - 1) / blocks);
  const bool many = a.rows > kFewRows;
  const int staged = many ? Layout<true>::kStagedBytes : Layout<false>::kStagedBytes;
  const int residual = many ? Layout<true>::kResidualFloats : Layout<false>::kResidualFloats;
  const int norm = many ? Layout<true>::kNormFloats : Layout<false>::kNormFloats;
  constexpr int kBeyondRow = RingUnit<false>::kParts;
  if (a.weight_is_f8 && most_weight_scales(a, blocks) + kBeyondRow > kMaxWeightScales) return false;
  const int whole_blocks = (a.hidden_size + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  return (whole_blocks + 32) * 2 * a.rows <= staged &&
         a.hidden_size <= kMaxChunkBlocks * kBlockColumns && hidden_of_block <= norm &&
         a.rows * hidden_of_block <= residual;
}

DecodeArguments decode_part(const DecodeArguments& arguments, int index, int launches) {
  DecodeArguments part = arguments;
  const int first = share_begin(arguments.rows, index, launches);
  part.rows = share_begin(arguments.rows, index + 1, launches) - first;
  part.hidden += int64_t{first} * arguments.hidden_size;
  part.cosines += first * kHalf;
  part.sines += first * kHalf;
  part.slots += first;
  part.context_length += first;
  part.page_table += int64_t{first} * arguments.max_pages;
  return part;
}

int decode_launches(const DecodeArguments& arguments, int num_multiprocessors) {
  for (int launches = 1; launches <= arguments.rows; ++launches) {
    bool all = true;
    for (int i = 0; i < launches && all; ++i) {
      all = decode_supports(decode_part(arguments, i, launches), num_multiprocessors);
    }
    if (all) return launches;
  }
  return 0;
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
  DecodeArguments with_policy = arguments;
  with_policy.weight_policy = weight_policy;
  // The runtime takes arguments by address and copies them.
  void* parameters[] = {&with_policy, const_cast<DecodeLayers*>(&layers)};
  return cudaLaunchCooperativeKernel(
      reinterpret_cast<const void*>(kernel_of(arguments)),
      dim3(static_cast<unsigned>(decode_blocks(num_multiprocessors))), dim3(kStreamThreads),
      parameters, kSharedBytes, stream);
}

}  // namespace glimpse::cuda
