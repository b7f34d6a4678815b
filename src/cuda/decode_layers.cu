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

#include "cuda/decode_staging.cuh"

namespace glimpse::cuda {
namespace fused {

/// One layer's pointers into shared memory, where they cost no trip to L2 when needed.
__device__ inline void fetch_layer(BlockTail& tail, const DecodeLayers& all, int index) {
  constexpr int kWords = sizeof(DecodeLayer) / sizeof(uint64_t);
  if (threadIdx.x < kWords && index < tail.arguments.num_layers) {
    reinterpret_cast<uint64_t*>(&tail.layers[index % 2])[threadIdx.x] =
        reinterpret_cast<const uint64_t*>(&all.layers[index])[threadIdx.x];
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

/// The activations of a product; `index` is its layer. What stage_norm() returns, or 0.
template <typename W, bool kMany>
__device__ float stage(const Block& block, int index, DecodeProduct product, int first_column,
                       int count, const Staged& staged) {
  Exchange& exchange = block.workspace->exchanges[index % 2];
  if (product == DecodeProduct::o) {
    stage_attended<W, kMany>(block, exchange, first_column / kDecodeHeadDim, count / kDecodeHeadDim,
                             staged);
    return 0;
  }
  if (product == DecodeProduct::down) {
    stage_inner<W, kMany>(block, exchange.inner, first_column, count, staged);
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

/// The norm that reads the residual stream behind a product; null behind the last layer.
__device__ inline const float* norm_behind(const Block& block, DecodeProduct product, int index) {
  if (product == DecodeProduct::o) return block.tail->layers[index % 2].post_attention_layernorm;
  if (product != DecodeProduct::down || index + 1 == block.a.num_layers) return nullptr;
  return block.tail->layers[(index + 1) % 2].input_layernorm;
}

/// What a warp says of the elements of a row that it published.
struct SumStatistics {
  float largest = 0;
  float squares = 0;

  /// Publishes them, the warp's together.
  __device__ void publish_to(PublishedStatistics& to) const {
    const uint32_t all = __reduce_max_sync(0xFFFFFFFFU, __float_as_uint(largest));
    const float sum = warp_sum(squares);
    if (threadIdx.x % 32 == 0) publish(to, __uint_as_float(all), sum);
  }
};

/// Elements `at` and the next of the residual stream, times the weights of the norm that comes
/// next.
template <bool kMany>
__device__ inline void publish_residual(PublishedRows<kMaxHidden>& to, int at, float2 x,
                                        float2 weight, SumStatistics& statistics) {
  const float2 y{x.x * weight.x, x.y * weight.y};
  if constexpr (kMany) {
    publish(to.words + at / 2, bf16_pair(y.x, y.y));
  } else {
    publish(to.words + at, y.x, y.y);
  }
  statistics.largest = fmaxf(statistics.largest, fmaxf(fabsf(y.x), fabsf(y.y)));
  statistics.squares += x.x * x.x + x.y * x.y;
}

/// Where a product's sums of outputs `output` and the next go; `factor` is what is left of the norm
/// before it. Each element of the residual stream has one owner, so its sum has one order.
template <bool kMany>
__device__ inline void store_sums(const Block& block, int index, DecodeProduct product,
                                  bool is_complete, int output, int row, float2 lower, float2 upper,
                                  float factor, SumStatistics& statistics) {
  const DecodeArguments& a = block.a;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  Exchange& exchange = block.workspace->exchanges[index % 2];
  const int at = row * shape.outputs + output;
  if (product == DecodeProduct::qkv) {
    publish(exchange.qkv + at / 2, bf16_pair(lower.x * factor, lower.y * factor));
  } else if (product == DecodeProduct::gate_up) {
    const float2 inner{silu(lower.x * factor) * (upper.x * factor),
                       silu(lower.y * factor) * (upper.y * factor)};
    publish(exchange.inner.words + at / 2, bf16_pair(inner.x, inner.y));
    statistics.largest = fmaxf(statistics.largest, fmaxf(fabsf(inner.x), fabsf(inner.y)));
  } else {
    const int column = output - shape.rows.first;
    auto* residual = reinterpret_cast<float2*>(block.residual +
                                               row * (shape.rows.last - shape.rows.first) + column);
    const float2 before = *residual;
    const float2 sum{before.x + lower.x, before.y + lower.y};
    *residual = sum;
    if (!is_complete) return;
    if (product == DecodeProduct::down && index + 1 == a.num_layers) {
      *reinterpret_cast<float2*>(a.hidden + at) = sum;
      return;
    }
    publish_residual<kMany>(
        product == DecodeProduct::o ? exchange.after_attention : exchange.after_mlp, at, sum,
        *reinterpret_cast<const float2*>(block.norm_weights + column), statistics);
  }
}

template <bool kMany>
__device__ inline auto* sums_of(const Block& block) {
  return static_cast<typename Layout<kMany>::Scratch*>(block.sums)->slots;
}

/// Adds the warps' runs of each tile in the order of their columns: the same sum every time. A warp
/// takes a row. The block must have met since the last multiply().
template <bool kMany>
__device__ void add_up_pass(const Block& block, DecodeProduct product, int index,
                            const LastPass& pass, bool is_complete) {
  const int row = static_cast<int>(threadIdx.x) / 32;
  if (row >= block.a.rows) return;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  const TileRows& rows = shape.rows;
  const PassPlan& plan = *pass.plan;
  const bool paired = product == DecodeProduct::gate_up;
  const int pair_bits = paired ? 2 : 3;
  const auto* slots = sums_of<kMany>(block);
  SumStatistics statistics;
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x) % 32; item < plan.tiles << pair_bits; item += 32) {
    const int pair = item & ((1 << pair_bits) - 1);
    const int tile = item >> pair_bits;
    const int in_half = pair % 4 * 2;
    const int half = pair / 4;  // 0 where paired
    const int output =
        rows.first + (pass.first_tile + tile) * rows.per_tile + half * rows.half + in_half;
    if (in_half >= rows.half || output >= rows.last) continue;
    const int first_unit = tile * plan.units.d;
    const int first = plan.per_warp.divide(first_unit) + tile;
    const int last = plan.per_warp.divide(first_unit + plan.units.d - 1) + tile;
    const float* from = &slots[first].values[row][half * 8 + in_half];
    float2 lower{0, 0};
    float2 upper{0, 0};
#pragma unroll 4
    for (int slot = first; slot <= last; ++slot) {
      const float2 part = *reinterpret_cast<const float2*>(from);
      lower.x += part.x;
      lower.y += part.y;
      if (paired) {
        const float2 other = *reinterpret_cast<const float2*>(from + 8);
        upper.x += other.x;
        upper.y += other.y;
      }
      from += sizeof(slots[0]) / sizeof(float);
    }
    store_sums<kMany>(block, index, product, is_complete, output, row, lower, upper, pass.factor,
                      statistics);
  }
  __syncwarp();
  const bool is_published = paired || norm_behind(block, product, index) != nullptr;
  if (!is_complete || !is_published) return;
  float2& so_far = block.tail->statistics[row];
  if (pass.first_tile > 0 && threadIdx.x % 32 == 0) {
    statistics.largest = fmaxf(statistics.largest, so_far.x);
    statistics.squares += so_far.y;
  }
  if (pass.first_tile + Layout<kMany>::kTiles < rows.tiles) {
    const uint32_t all = __reduce_max_sync(0xFFFFFFFFU, __float_as_uint(statistics.largest));
    const float squares = warp_sum(statistics.squares);
    if (threadIdx.x % 32 == 0) so_far = {__uint_as_float(all), squares};
    return;
  }
  Exchange& exchange = block.workspace->exchanges[index % 2];
  statistics.publish_to(paired ? exchange.inner.statistics[row][blockIdx.x]
                        : product == DecodeProduct::o
                            ? exchange.after_attention.statistics[row][blockIdx.x]
                            : exchange.after_mlp.statistics[row][blockIdx.x]);
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
  LastPass pass{&shape.pass_over(0), 0, 1};
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
      const float squares = stage<W, kMany>(block, index, product, first_column, count, staged);
      if (has_weight) block.norm_weights[column] = norm_weight;
      __syncthreads();
      const bool is_normed = product == DecodeProduct::qkv || product == DecodeProduct::gate_up;
      const bool has_factor = kMany && sizeof(W) == 1;  // already
      if (!has_factor && is_normed && static_cast<int>(threadIdx.x) / 32 < block.a.rows) {
        pass.factor = norm_factor(block.a, squares);
      }
      is_staged = true;
    }
    if (kMany) ring.begin(*pass.plan, registers);
    ring.multiply(*pass.plan, registers, count * static_cast<int>(sizeof(W)) / kUnitBytes, staged,
                  block.a.rows, sums_of<kMany>(block));
    const bool is_last_chunk = first_column + count >= shape.columns;
    int first_tile = pass.first_tile + Layout<kMany>::kTiles;
    if (first_tile >= shape.rows.tiles) {
      if (is_last_chunk) return pass;
      first_tile = 0;
      first_column += count;
      is_staged = false;
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
  const DecodeLayer& layer = block.tail->layers[index % 2];
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
  __syncthreads();
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
  statistics.publish_to(exchanges[1].after_mlp.statistics[row][blockIdx.x]);
}

// All products of all layers run through one copy of the code: fetching instructions costs as much
// as running them here. `kMany` has room for more rows' activations and asks for more of them at
// once; few are quicker with the shorter code and the larger ring.
// spill: up to ten words that live across a layer's attention, once a layer; the products have
// none.
template <typename W, bool kKvF8, bool kMany>
__global__ void __launch_bounds__(kStreamThreads, 1)
    decode_all_layers(const __grid_constant__ DecodeArguments a,
                      const __grid_constant__ DecodeLayers layers) {
  if (threadIdx.x == 0) tail_of_block().arguments = a;
  __syncthreads();
  const Block block = this_block<kMany>();
  fetch_layer(*block.tail, layers, 0);
  prepare_block<W, kMany>(block);
  using Cursor = StepCursor<W, kMany>;
  using Ring = WeightRing<W, kRingUnitBytes<kMany>, kRingDepth, Cursor>;
  Ring ring{Cursor(layers)};
#pragma unroll 1
  for (int step = 0; step < a.num_layers * kDecodeProducts; ++step) {
    const int index = step / kDecodeProducts;
    const auto product = static_cast<DecodeProduct>(step % kDecodeProducts);
    if (product == DecodeProduct::qkv) fetch_layer(*block.tail, layers, index + 1);
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

/// More blocks than the exchange has room for stay idle.
int decode_blocks(int num_multiprocessors) {
  return num_multiprocessors < kMaxBlocks ? num_multiprocessors : kMaxBlocks;
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
  // The runtime takes arguments by address and copies them.
  void* parameters[] = {const_cast<DecodeArguments*>(&arguments),
                        const_cast<DecodeLayers*>(&layers)};
  return cudaLaunchCooperativeKernel(
      reinterpret_cast<const void*>(kernel_of(arguments)),
      dim3(static_cast<unsigned>(decode_blocks(num_multiprocessors))), dim3(kStreamThreads),
      parameters, kSharedBytes, stream);
}

}  // namespace glimpse::cuda
