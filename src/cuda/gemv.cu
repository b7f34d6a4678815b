// One block per multiprocessor stages the activation rows in shared memory and streams its share of
// the weight rows past them. Moves outputs * columns weight bytes once; the activations come from
// the L2 cache.
//
// The units of 16 weight rows x 128 bytes of a block, tile after tile, are dealt to its warps one
// by one, and each warp copies ahead to its last unit without a stop. The copies go through a ring
// in shared memory: of a ring in registers the compiler gives all loads one scoreboard, and waiting
// for the oldest waits for all. A warp asks for whole lines of 128 bytes; in halves that pass L1
// by, reading alone was 10 to 30 % slower.
//
// The warps meet once per tile, and one of them adds up what all have left, in the order of the
// columns: the same sum every time. Runs of neighbouring units, whose warps only meet at the end,
// were up to 3 % slower.
#include "cuda/gemv.h"

#include <algorithm>

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Units of a warp on their way: 64 KiB of a multiprocessor, where the activations leave that much.
constexpr int kMaxDepth = 4;
// What a block may use on every card is 99 KiB; the sums of two tiles take 8 of them.
constexpr int kSharedBytes = 90 * 1024;

/// Bytes of each weight row in a unit.
constexpr int kUnitBytes = 128;
template <typename W>
constexpr int kUnitColumns = kUnitBytes / static_cast<int>(sizeof(W));

/// Activation rows in shared memory.
struct Staged {
  uint16_t* values;  // [rows, stride]: bf16; beside FP8 weights f16
  float* scales;     // FP8 only: [blocks of 128 columns, kStreamRows]
  int stride;
};

/// Elements between staged rows of `columns`, rounded up to whole blocks: the padding keeps the
/// eight rows in different banks.
template <typename W>
__host__ __device__ int staged_stride(int64_t columns) {
  const auto blocks = static_cast<int>((columns + kBlockColumns - 1) / kBlockColumns);
  return blocks * kBlockColumns + (sizeof(W) == 1 ? 8 : 32);
}

int staged_stride_of(const GemvArguments& a) {
  return a.weight_is_f8 ? staged_stride<Fp8>(a.columns) : staged_stride<__nv_bfloat16>(a.columns);
}

int blocks_of(int64_t columns) {
  return static_cast<int>((columns + kBlockColumns - 1) / kBlockColumns);
}

/// The rows, and behind them the scales of their blocks.
int staged_bytes(const GemvArguments& a) {
  return a.rows * staged_stride_of(a) * static_cast<int>(sizeof(uint16_t)) +
         (a.weight_is_f8 ? blocks_of(a.columns) * kStreamRows * static_cast<int>(sizeof(float))
                         : 0);
}

/// A unit on its way through shared memory.
template <typename W>
struct RingUnit {
  uint4 pieces[16][8];  // [row][piece of 16 bytes, see place_of()]
};
template <>
struct RingUnit<Fp8> {
  uint4 pieces[16][8];
  float scales[16];
};

int ring_bytes(const GemvArguments& a, int depth) {
  return kWarps * depth *
         static_cast<int>(a.weight_is_f8 ? sizeof(RingUnit<Fp8>) : sizeof(RingUnit<__nv_bfloat16>));
}

int depth_of(const GemvArguments& a) {
  return std::min((kSharedBytes - staged_bytes(a)) / ring_bytes(a, 1), kMaxDepth);
}

__device__ float silu(float x) {
  return x / (1.0F + __expf(-x));
}

/// 256 columns by a whole warp, lane i the eight bf16 numbers from column 8i on, as they are
/// staged; `scale` is only written beside FP8 weights. The two blocks share it.
template <typename W>
__device__ uint4 staged_words_bf16(uint4 eight, float& scale) {
  if constexpr (sizeof(W) == 1) {
    const uint32_t largest = larger_of_pair(largest_pair(eight));
    const StagedScale s = staged_scale_of(__uint_as_float(__reduce_max_sync(0xFFFFFFFFU, largest)));
    scale = s.scale;
    return f16_of_bf16(eight, __float2bfloat162_rn(s.factor));
  } else {
    return eight;
  }
}

/// A warp writes 256 columns of a row together, lane i the eight from column 8i of block `block`
/// on, as staged_words_bf16() made them; the second block may be beyond the row's `blocks`.
template <typename W>
__device__ void put_staged_bf16(const Staged& staged, int row, int block, int blocks, uint4 words,
                                float scale) {
  const int lane = threadIdx.x % 32;
  if (block + lane / 16 >= blocks) return;
  if (sizeof(W) == 1 && lane % 16 == 0) {
    staged.scales[(block + lane / 16) * kStreamRows + row] = scale;
  }
  *reinterpret_cast<uint4*>(staged.values + row * staged.stride + block * kBlockColumns +
                            lane * 8) = words;
}

/// A warp takes 256 columns of a row at a time and asks for all that it takes before it waits: 8
/// rows of 2560 cost one way to the L2 cache.
template <typename W>
__device__ void stage_rows(const GemvArguments& a, const Staged& staged) {
  constexpr int kAtOnce = 10;
  const auto* x = static_cast<const __nv_bfloat16*>(a.x);
  const int columns = static_cast<int>(a.columns);
  const int blocks = (columns + kBlockColumns - 1) / kBlockColumns;
  const int per_row = (blocks + 1) / 2;
  const int total = a.rows * per_row;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int base = static_cast<int>(threadIdx.x) / 32; base < total; base += kAtOnce * kWarps) {
    uint4 words[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kWarps;
      const int row = item / per_row;
      const int column = (item - row * per_row) * 2 * kBlockColumns + lane * 8;
      words[i] = {0, 0, 0, 0};
      if (item < total && column < columns) {
        words[i] = *reinterpret_cast<const uint4*>(x + row * a.x_stride + column);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = base + i * kWarps;
      if (item >= total) break;
      const int row = item / per_row;
      float scale = 0;
      words[i] = staged_words_bf16<W>(words[i], scale);
      put_staged_bf16<W>(staged, row, (item - row * per_row) * 2, blocks, words[i], scale);
    }
  }
}

/// What a lane has of a unit.
struct UnitRegisters {
  uint4 lower[2];                  // two 64-byte groups of row g
  uint4 upper[2];                  // of row g + 8
  float lower_scale, upper_scale;  // FP8 only
};

/// sums += unit * activations. `x` points to this lane's activation row (column g of B) at the
/// unit's first column, `x_scales` to its block's scales.
///   sums: [0], [1] = row g, activation rows 2t and 2t + 1; [2], [3] = row g + 8
template <typename W>
__device__ void multiply_unit(const UnitRegisters& unit, const uint16_t* x, const float* x_scales,
                              float (&sums)[4]) {
  const int t = threadIdx.x % 4;
  if constexpr (sizeof(W) == 1) {
    const float2 x_scale = reinterpret_cast<const float2*>(x_scales)[t];
    float c[2][4] = {};
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const auto* from = reinterpret_cast<const uint4*>(x + group * 64 + t * 16);
      multiply_f8(unit.lower[group], unit.upper[group], from[0], from[1], c[group]);
    }
    sums[0] += (c[0][0] + c[1][0]) * (unit.lower_scale * x_scale.x);
    sums[1] += (c[0][1] + c[1][1]) * (unit.lower_scale * x_scale.y);
    sums[2] += (c[0][2] + c[1][2]) * (unit.upper_scale * x_scale.x);
    sums[3] += (c[0][3] + c[1][3]) * (unit.upper_scale * x_scale.y);
  } else {
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const uint4 b = *reinterpret_cast<const uint4*>(x + group * 32 + t * 8);
      multiply_bf16(unit.lower[group], unit.upper[group], b, sums);
    }
  }
}

/// A block's outputs, dealt to tiles. A tile is up to eight rows for the lower half of the mma's A
/// operand and as many for the upper: the rows that follow or, of gate and up, the same rows of the
/// other matrix.
struct BlockShare {
  int first, last;  // outputs
  int half;         // rows in half a tile, at most 8
  int per_tile;     // outputs: half or, unpaired, twice as many
  int tiles;
  int units;  // per tile

  __device__ static BlockShare deal(const GemvArguments& a, int unit_columns) {
    const int outputs = static_cast<int>(a.outputs);
    const int halves = a.op == GemvOp::silu_mul ? 1 : 2;  // of a tile's rows, that are outputs
    BlockShare share;
    share.first = share_begin(outputs, blockIdx.x, gridDim.x);
    share.last = share_begin(outputs, blockIdx.x + 1, gridDim.x);
    const int count = share.last - share.first;
    share.tiles = (count + 8 * halves - 1) / (8 * halves);
    share.half = (count + share.tiles * halves - 1) / (share.tiles * halves);
    share.per_tile = share.half * halves;
    share.units = static_cast<int>(a.columns) / unit_columns;
    return share;
  }
};

template <int kBytes>
__device__ void copy_async(void* to, const void* from, uint64_t policy) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(address),
        "l"(from), "l"(policy)
        : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
  }
}

/// Until at most `pending` of this thread's groups of copies are under way.
__device__ void wait_for_copies(int pending) {
  static_assert(kMaxDepth == 4);
  if (pending == 3) {
    asm volatile("cp.async.wait_group 3;" ::: "memory");
  } else if (pending == 2) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  } else if (pending == 1) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  } else {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  }
}

/// Where piece `piece` of a row lies: what the lanes of a quarter warp read, four pieces of an even
/// row and of the odd one after it, is in different banks.
__device__ int place_of(int row, int piece) {
  return piece ^ (row % 2 * 4);
}

/// A warp's units: each `step`th of the block's. A row of a unit is copied by eight lanes.
template <typename W>
struct UnitStream {
  const GemvArguments& a;
  const BlockShare& share;
  RingUnit<W>* ring;  // [depth], this warp's
  int depth;
  int step;
  int slot = 0;              // of the next unit to use
  int tile = 0, unit, left;  // of the next copy
  uint64_t policy;
  const uint8_t* from[4];
  const float* scale;

  __device__ UnitStream(const GemvArguments& arguments, const BlockShare& of, RingUnit<W>* units,
                        int num_units, int num_warps)
      : a(arguments), share(of), ring(units), depth(num_units), step(num_warps) {
    // Nobody reads the weights again before all others have passed through L2.
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    unit = static_cast<int>(threadIdx.x) / 32;
    left = unit < step ? (share.tiles * share.units - unit + step - 1) / step : 0;
    seek();
#pragma unroll 1
    for (int i = 0; i < depth; ++i) refill(i);
  }

  /// The next unit into registers, and its room in the ring to a new one.
  __device__ void take(UnitRegisters& to) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int g = lane / 4;
    wait_for_copies(depth - 1);
    __syncwarp();
    const RingUnit<W>& stored = ring[slot];
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const int place = place_of(g, group * 4 + lane % 4);
      to.lower[group] = stored.pieces[g][place];
      to.upper[group] = stored.pieces[g + 8][place];
    }
    if constexpr (sizeof(W) == 1) {
      to.lower_scale = stored.scales[g];
      to.upper_scale = stored.scales[g + 8];
    }
    __syncwarp();
    refill(slot);
    slot = slot + 1 == depth ? 0 : slot + 1;
  }

 private:
  /// Row `row` of the tile, of 16. Rows beyond the end repeat the last one: their sums are never
  /// stored.
  __device__ int output_of(int row) const {
    const bool is_paired = a.op == GemvOp::silu_mul;
    const int in_half = min(row % 8, share.half - 1);
    const int upper = row < 8 || is_paired ? 0 : share.half;
    return min(share.first + tile * share.per_tile + upper + in_half, share.last - 1);
  }

  __device__ void seek() {
    const bool is_paired = a.op == GemvOp::silu_mul;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t row_bytes = a.columns * static_cast<int>(sizeof(W));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const void* const weight = is_paired && i >= 2 ? a.weight_up : a.weight;
      from[i] = static_cast<const uint8_t*>(weight) + output_of(4 * i + lane / 8) * row_bytes +
                unit * kUnitBytes + lane % 8 * 16;
    }
    if constexpr (sizeof(W) == 1) {
      const float* const scales = is_paired && lane % 16 >= 8 ? a.scales_up : a.scales;
      scale = scales + output_of(lane % 16) / kBlockColumns * share.units + unit;
    }
  }

  __device__ void refill(int i) {
    if (left > 0) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      RingUnit<W>& to = ring[i];
      const int row = lane / 8;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        copy_async<16>(&to.pieces[4 * j + row][place_of(row, lane % 8)], from[j], policy);
        from[j] += step * kUnitBytes;
      }
      if constexpr (sizeof(W) == 1) {
        if (lane < 16) copy_async<4>(&to.scales[lane], scale, policy);
        scale += step;
      }
      --left;
      unit += step;
      if (unit >= share.units) {
        unit -= share.units;
        ++tile;
        seek();
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};

/// Stores this lane's sums of a tile, as multiply_unit() leaves them.
template <typename Out>
struct TileStore {
  const GemvArguments& a;
  const BlockShare& share;

  __device__ void operator()(int tile, const float (&sums)[4]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane / 4 >= share.half) return;
    const int output = share.first + tile * share.per_tile + lane / 4;
    const int row = lane % 4 * 2;
    if (a.op == GemvOp::silu_mul) {
      put(row, output, silu(sums[0]) * sums[2]);
      put(row + 1, output, silu(sums[1]) * sums[3]);
    } else {
      put(row, output, sums[0]);
      put(row + 1, output, sums[1]);
      put(row, output + share.half, sums[2]);
      put(row + 1, output + share.half, sums[3]);
    }
  }

 private:
  __device__ void put(int row, int output, float sum) const {
    if (row >= a.rows || output >= share.last) return;
    if (a.bias != nullptr) sum += a.bias[output];
    Out& target = static_cast<Out*>(a.out)[row * a.out_stride + output];
    if (a.op == GemvOp::add) sum += static_cast<float>(target);
    store(target, sum);
  }
  __device__ static void store(__nv_bfloat16& to, float sum) { to = __float2bfloat16(sum); }
  /// Logits are read at once by who samples: kept in L2, they do not go to memory between the
  /// weights.
  __device__ static void store(float& to, float sum) {
    uint64_t keep;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(keep));
    asm volatile("st.global.L2::cache_hint.f32 [%0], %1, %2;" ::"l"(&to), "f"(sum), "l"(keep)
                 : "memory");
  }
};

/// A barrier of the warps that have units.
__device__ void meet(int warps) {
  asm volatile("bar.sync 1, %0;" ::"r"(warps * 32) : "memory");
}

template <typename W, typename Out>
__global__ void __launch_bounds__(kThreads, 1)
    stream_weights(const __grid_constant__ GemvArguments a, int stride, int depth) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float4 parts[2][kWarps][32];  // of a tile and the next one, each lane's sums
  __shared__ BlockShare share;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto* const rings = reinterpret_cast<RingUnit<W>*>(shared);
  auto* const values = reinterpret_cast<uint16_t*>(rings + kWarps * depth);
  const Staged staged{values, reinterpret_cast<float*>(values + a.rows * stride), stride};
  if (threadIdx.x == 0) share = BlockShare::deal(a, kUnitColumns<W>);
  __syncthreads();
  // Each has at least one unit of every tile.
  const int warps = min(kWarps, share.units);
  UnitStream<W> stream(a, share, rings + warp * depth, depth, warps);
  stage_rows<W>(a, staged);
  __syncthreads();
  if (warp >= warps) return;

  const TileStore<Out> store{a, share};
  const uint16_t* const x = values + min(lane / 4, a.rows - 1) * stride;
  int column = warp;  // in units
  int turn = warp;    // tiles until this warp adds one up
#pragma unroll 1
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int first = column;
    float sums[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (; column < share.units; column += warps) {
      UnitRegisters unit;
      stream.take(unit);
      multiply_unit<W>(unit, x + column * kUnitColumns<W>, staged.scales + column * kStreamRows,
                       sums);
    }
    column -= share.units;
    float4(*const tile_parts)[32] = parts[tile % 2];
    tile_parts[first][lane] = {sums[0], sums[1], sums[2], sums[3]};
    // Who writes the tile after the next to the same place has met the one who adds up this one.
    meet(warps);
    if (turn == 0) {
      turn = warps;
      sums[0] = sums[1] = sums[2] = sums[3] = 0;
#pragma unroll 4
      for (int i = 0; i < warps; ++i) {
        const float4 part = tile_parts[i][lane];
        sums[0] += part.x;
        sums[1] += part.y;
        sums[2] += part.z;
        sums[3] += part.w;
      }
      store(tile, sums);
    }
    --turn;
  }
}

template <typename Launch>
cudaError_t for_each_variant(const Launch& launch) {
  for (const auto kernel :
       {stream_weights<Fp8, float>, stream_weights<Fp8, __nv_bfloat16>,
        stream_weights<__nv_bfloat16, float>, stream_weights<__nv_bfloat16, __nv_bfloat16>}) {
    if (const cudaError_t error = launch(kernel); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

bool gemv_supports(const GemvArguments& a) {
  const auto is_aligned = [](const void* pointer, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  const int64_t row_bytes = a.columns * (a.weight_is_f8 ? 1 : 2);
  // share_begin() counts in 32 bits; a grid is far below 512 blocks.
  return a.outputs < (1 << 23) && row_bytes % kUnitBytes == 0 && a.rows >= 1 &&
         a.rows <= kGemvRows && is_aligned(a.weight, 16) && is_aligned(a.weight_up, 16) &&
         is_aligned(a.x, 16) && a.x_stride % 8 == 0 && depth_of(a) >= 1;
}

cudaError_t prepare_gemv() {
  return for_each_variant([](const auto kernel) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
}

cudaError_t launch_gemv(const GemvArguments& a, int num_multiprocessors, cudaStream_t stream) {
  const int per_tile = a.op == GemvOp::silu_mul ? 8 : 16;
  const auto tiles = static_cast<int>((a.outputs + per_tile - 1) / per_tile);
  const int depth = depth_of(a);
  const int blocks = std::min(tiles, num_multiprocessors);
  const auto kernel = [&] {
    if (a.weight_is_f8) {
      return a.out_is_f32 ? stream_weights<Fp8, float> : stream_weights<Fp8, __nv_bfloat16>;
    }
    return a.out_is_f32 ? stream_weights<__nv_bfloat16, float>
                        : stream_weights<__nv_bfloat16, __nv_bfloat16>;
  }();
  kernel<<<blocks, kThreads, static_cast<size_t>(ring_bytes(a, depth) + staged_bytes(a)), stream>>>(
      a, staged_stride_of(a), depth);
  return cudaGetLastError();
}

}  // namespace glimpse::cuda
