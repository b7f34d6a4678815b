// One block per multiprocessor, all resident, in five phases per layer:
//
//   norm + qkv | q/k norm, rotary, KV store, attention | o_proj + residual | norm + gate, up, SiLU
//   | down_proj + residual
//
// Each product streams its matrix once (weight_stream.cuh). With few sequences a ring in shared
// memory (weight_ring.cuh) runs ahead through all products; with many, a warp that has used its
// last weights starts the next product's: the memory stays busy while blocks wait for each other.
// After qkv the blocks meet at a grid barrier. All other results travel as words that say
// themselves whether they are there (decode_block.cuh): the reader of a phase polls
// the very words it needs, which costs one trip through L2 instead of a fence, a counter and a
// load. Bytes moved per step: every weight, and the keys and values of each sequence, once.
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

/// Takes back what this block published through `exchange`: each kind by a quarter of the threads.
__device__ inline void take_back_all(const Block& block, Exchange& exchange) {
  const DecodeArguments& a = block.a;
  constexpr int kQuarter = kStreamThreads / 4;
  const int kind = static_cast<int>(threadIdx.x) / kQuarter;
  const int thread = static_cast<int>(threadIdx.x) % kQuarter;
  if (kind < 3) {
    const TileRows& rows =
        block.tail
            ->shapes[static_cast<int>(kind == 2 ? DecodeProduct::gate_up : DecodeProduct::down)]
            .rows;
    // The MLP's words are pairs.
    const int width = kind == 2 ? a.intermediate_size / 2 : a.hidden_size;
    const int first = kind == 2 ? rows.first / 2 : rows.first;
    const int last = kind == 2 ? rows.last / 2 : rows.last;
    uint32_t* words = kind == 0   ? exchange.after_attention
                      : kind == 1 ? exchange.after_mlp
                                  : exchange.inner;
#pragma unroll 1
    for (int row = 0; row < a.rows; ++row, words += width) {
#pragma unroll 1
      for (int i = first + thread; i < last; i += kQuarter) take_back(words + i);
    }
    return;
  }
  const int max_splits = block.tail->max_splits;
  const int units = a.rows * a.num_kv_heads * max_splits;
  const int group = a.num_heads / a.num_kv_heads;
#pragma unroll 1
  for (int index = blockIdx.x; index < units; index += gridDim.x) {
    const int split = index % max_splits;
    const int first_head = index / max_splits * group;
#pragma unroll 1
    for (int head = 0; head < group; ++head) {
      if (thread >= static_cast<int>(sizeof(Partial) / 16)) continue;
      take_back4(exchange.partials[(first_head + head) * max_splits + split] + thread * 4);
    }
  }
}

/// The activations of a product; `index` is its layer.
template <typename W, bool kMany>
__device__ void stage(const Block& block, const DecodeLayer& layer, int index,
                      DecodeProduct product, int first_column, int count, const Staged& staged) {
  Exchange& exchange = block.workspace->exchanges[index % 2];
  if (product == DecodeProduct::o) {
    stage_attended<W, kMany>(block, exchange, first_column / kDecodeHeadDim, count / kDecodeHeadDim,
                             staged);
  } else if (product == DecodeProduct::down) {
    stage_inner<W, kMany>(block, exchange.inner, first_column, count, staged);
  } else {
    const bool first = product == DecodeProduct::qkv;
    const uint32_t* stream =
        first ? block.workspace->exchanges[(index + 1) % 2].after_mlp : exchange.after_attention;
    stage_norm<W, kMany>(block, first && index == 0 ? nullptr : stream,
                         first ? layer.input_layernorm : layer.post_attention_layernorm, staged);
  }
}

/// Where a product's sums of outputs `output` and the next go. Each element of the residual stream
/// has one owner, so its sum has one order.
__device__ inline void store_sums(const Block& block, int index, DecodeProduct product,
                                  bool is_complete, int output, int row, float2 lower,
                                  float2 upper) {
  const DecodeArguments& a = block.a;
  const ProductShape& shape = block.tail->shapes[static_cast<int>(product)];
  Exchange& exchange = block.workspace->exchanges[index % 2];
  if (product == DecodeProduct::qkv) {
    const float factor = block.tail->norm_factors[row];
    static_cast<uint32_t*>(a.qkv)[(row * shape.outputs + output) / 2] =
        bf16_pair(lower.x * factor, lower.y * factor);
  } else if (product == DecodeProduct::gate_up) {
    const float factor = block.tail->norm_factors[row];
    publish(exchange.inner + (row * shape.outputs + output) / 2,
            bf16_pair(silu(lower.x * factor) * (upper.x * factor),
                      silu(lower.y * factor) * (upper.y * factor)));
  } else {
    auto* residual = reinterpret_cast<float2*>(
        block.residual + row * (shape.rows.last - shape.rows.first) + output - shape.rows.first);
    const float2 before = *residual;
    const float2 sum{before.x + lower.x, before.y + lower.y};
    *residual = sum;
    if (!is_complete) return;
    const int at = row * shape.outputs + output;
    if (product == DecodeProduct::o) {
      publish(exchange.after_attention + at, sum.x, sum.y);
    } else if (index + 1 < a.num_layers) {
      publish(exchange.after_mlp + at, sum.x, sum.y);
    } else {
      *reinterpret_cast<float2*>(a.hidden + at) = sum;
    }
  }
}

template <bool kMany>
__device__ inline auto* sums_of(const Block& block) {
  return static_cast<typename Layout<kMany>::Scratch*>(block.sums)->slots;
}

template <bool kMany, typename W>
__device__ void add_up_pass(const Block& block, const Product<W>& weights, int index,
                            const LastPass& pass, bool is_complete) {
  add_up(*pass.plan, weights.shape.rows, weights.is_paired(), pass.first_tile, block.a.rows,
         sums_of<kMany>(block), [&](int output, int row, float2 lower, float2 upper) {
           store_sums(block, index, weights.product, is_complete, output, row, lower, upper);
         });
  __syncwarp();
}

/// Stages the activations of a product and multiplies them; what is left to do is add_up_pass() of
/// the last pass, usually the only one.
template <bool kMany, typename W, typename Stream>
__device__ LastPass multiply_product(const Block& block, Stream& stream, const Product<W>& weights,
                                     int index) {
  const ProductShape& shape = weights.shape;
  LastPass pass{&shape.pass, 0};
  if (shape.rows.tiles == 0) return pass;
  int first_column = 0;
  bool is_staged = false;
#pragma unroll 1
  for (;;) {
    const int count = min(shape.chunk_columns, shape.columns - first_column);
    const Staged staged = block.stage_of(staged_stride<W>(count));
    if (!is_staged) {
      stage<W, kMany>(block, weights.layer, index, weights.product, first_column, count, staged);
      __syncthreads();
      if (weights.product == DecodeProduct::qkv || weights.is_paired()) find_norm_factors(block);
      is_staged = true;
    }
    int first_tile = pass.first_tile;
    const auto locate = [&](int tile) { return weights.locate(first_tile + tile, first_column); };
    if constexpr (kMany) {
      stream.multiply(*pass.plan, staged, block.a.rows, sums_of<kMany>(block), locate);
    } else {
      stream.multiply(*pass.plan, staged, block.a.rows, sums_of<kMany>(block));
    }
    const bool is_last_chunk = first_column + count >= shape.columns;
    first_tile += kTilesPerPass;
    if (first_tile >= shape.rows.tiles) {
      if (is_last_chunk) return pass;
      first_tile = 0;
      first_column += count;
      is_staged = false;
    }
    __syncthreads();
    add_up_pass<kMany>(block, weights, index, pass, is_last_chunk);
    __syncthreads();
    if (threadIdx.x == 0) {
      const int next = min(shape.chunk_columns, shape.columns - first_column);
      block.tail->pass = PassPlan::make(shape.rows.tiles - first_tile,
                                        next * static_cast<int>(sizeof(W)), kStreamWarps);
    }
    __syncthreads();
    pass = {&block.tail->pass, first_tile};
    if constexpr (kMany) stream.begin(*pass.plan, locate);
  }
}

/// From a finished qkv product to published attention.
template <typename W, bool kKvF8, bool kMany>
__device__ __forceinline__ void attend_layer(int index) {
  const Block block = this_block<kMany>();
  const Product<W> weights(block, block.tail->layers[index % 2], DecodeProduct::qkv);
  __syncthreads();
  add_up_pass<kMany>(block, weights, index, block.tail->last_pass, true);
  arrive(block);
  AttentionStart<kKvF8> start;
  begin_attention<kKvF8>(block, weights.layer, block.tail->unit, start);
  wait(block, index + 1);
  attention<W, kKvF8, kMany>(block, weights.layer, start, block.workspace->exchanges[index % 2]);
}

/// Not inlined: the attention's tiles and the stream's weights, where those are in registers, would
/// crowd each other out, although they are not alive together.
template <typename W, bool kKvF8>
__device__ __noinline__ void call_attend_layer(int index) {
  attend_layer<W, kKvF8, true>(index);
}

/// What each block works out once.
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
  const TileRows& rows = block.tail->shapes[static_cast<int>(DecodeProduct::down)].rows;
  const int width = rows.last - rows.first;
  for (int row = 0; row < a.rows; ++row) {
#pragma unroll 1
    for (int i = thread; i < width; i += kStreamThreads) {
      block.residual[row * width + i] = __ldcg(a.hidden + row * a.hidden_size + rows.first + i);
    }
  }
#pragma unroll 1
  for (int i = 0; i < 2; ++i) take_back_all(block, block.workspace->exchanges[i]);
}

// All products of all layers run through one copy of the code: fetching instructions costs as much
// as running them here. `kMany` asks for more rows' activations at once and keeps the weights ahead
// in registers, which pays from some rows on; few are quicker with the shorter code and the ring.
template <typename W, bool kKvF8, bool kMany>
__global__ void __launch_bounds__(kStreamThreads, 1)
    decode_all_layers(const __grid_constant__ DecodeArguments a,
                      const __grid_constant__ DecodeLayers layers) {
  if (threadIdx.x == 0) tail_of_block().arguments = a;
  __syncthreads();
  const Block block = this_block<kMany>();
  fetch_layer(*block.tail, layers, 0);
  prepare_block<W, kMany>(block);
  auto stream = [&] {
    if constexpr (kMany) {
      return WeightStream<W, kStages>();
    } else {
      return WeightRing<W, kRingDepth, StepCursor<W>>(block.ring + threadIdx.x / 32 * kRingDepth,
                                                      StepCursor<W>(layers, *block.tail));
    }
  }();
  const int steps = a.num_layers * kDecodeProducts;
  // One step earlier there is nothing to multiply: this way everything stands here once.
#pragma unroll 1
  for (int step = -1;; ++step) {
    const int index = max(step, 0) / kDecodeProducts;
    const auto product = static_cast<DecodeProduct>(max(step, 0) % kDecodeProducts);
    const Product<W> weights(block, block.tail->layers[index % 2], product);
    const bool attends = step >= 0 && product == DecodeProduct::qkv;
    LastPass pass{&weights.shape.pass, 0};
    if (step >= 0) {
      if (attends) fetch_layer(*block.tail, layers, index + 1);
      pass = multiply_product<kMany>(block, stream, weights, index);
    }
    if (attends) {
      if (threadIdx.x == 0) block.tail->last_pass = pass;
      if constexpr (kMany) {
        call_attend_layer<W, kKvF8>(index);
      } else {
        attend_layer<W, kKvF8, kMany>(index);
      }
    }
    __syncthreads();  // sums wait in the slots, or the attention's shared memory changes hands
    if (!attends && step >= 0) add_up_pass<kMany>(block, weights, index, pass, true);
    if (step + 1 == steps) break;
    const int next_index = (step + 1) / kDecodeProducts;
    const Product<W> next(block, block.tail->layers[next_index % 2],
                          static_cast<DecodeProduct>((step + 1) % kDecodeProducts));
    if constexpr (kMany) {
      stream.begin(next.shape.pass, [&](int tile) { return next.locate(tile, 0); });
    }
    if (attends && index > 0) take_back_all(block, block.workspace->exchanges[(index + 1) % 2]);
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
      (group != 1 && group != 2 && group != 4) || a.hidden_size % alignment != 0 ||
      a.intermediate_size % alignment != 0 || a.hidden_size > kMaxHidden ||
      a.intermediate_size > kMaxIntermediate) {
    return false;
  }
  // A norm's row is staged whole; a block keeps its part of the residual stream.
  const int blocks = decode_blocks(num_multiprocessors);
  const int hidden_of_block = 2 * ((a.hidden_size / 2 + blocks - 1) / blocks);
  const bool many = a.rows > kFewRows;
  const int staged = many ? Layout<true>::kStagedBytes : Layout<false>::kStagedBytes;
  const int residual = many ? Layout<true>::kResidualFloats : Layout<false>::kResidualFloats;
  return (a.hidden_size + 32 + kBlockColumns) * 2 * a.rows <= staged &&
         a.hidden_size <= kMaxChunkBlocks * kBlockColumns && a.rows * hidden_of_block <= residual;
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
