// The stream of weight bytes that decoding is: products of a few activation rows with a matrix that
// is read once. Shared by the standalone product (gemv.cu) and the fused decoder
// (decode_layers.cu).
//
// A warp works on units of 16 weight rows x 256 bytes: each lane loads eight 16-byte pieces (rows g
// and g + 8, g = lane / 4) straight into registers, all in flight at once, and feeds them to
// mma.m16n8k16 as the A operand; the up to 8 activation rows are the B operand's columns. A dot
// product does not care about the order of its columns, so the fragments take columns in the order
// in which a lane's 16 bytes bring them, and the activations are read in the same order: no
// shuffle, no second layout of the weights.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>

namespace glimpse::cuda {

/// Threads of a block that streams weights; one block per multiprocessor.
inline constexpr int kStreamThreads = 512;
inline constexpr int kStreamWarps = kStreamThreads / 32;
/// Activation rows that one pass serves: the columns of the mma's B operand.
inline constexpr int kStreamRows = 8;
/// Weight rows of a tile: the rows of the mma's A operand.
inline constexpr int kTileRows = 16;
/// Bytes of each weight row in a unit.
inline constexpr int kUnitBytes = 256;
/// Tiles whose sums wait in shared memory at once: one per warp.
inline constexpr int kTilesPerPass = kStreamWarps;

struct Fp8 {
  uint8_t bits;
};

/// Where one tile's weights are: rows 0..7 follow `lower`, rows 8..15 follow `upper`: the same
/// matrix eight rows on, or, for gate and up, the other half.
struct TileRows {
  const uint8_t* lower;
  const uint8_t* upper;
  const float* lower_scales;  // scale row of each half; null for bf16
  const float* upper_scales;
  int lower_rows;  // rows of each half that exist: 8, or fewer at the matrix's end
  int upper_rows;
};

template <typename W>
inline constexpr int kUnitColumns = kUnitBytes / static_cast<int>(sizeof(W));

struct UnitRegisters {
  uint4 lower[4];   // four 64-byte groups of row g
  uint4 upper[4];   // of row g + 8
  float scales[4];  // FP8: of the two 128-column blocks, lower half of the tile, then upper
};

__device__ inline uint4 load_stream(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Bytes 1 and 3 of `word` as two bf16: the e4m3 bits moved into place stand for value * 2^-120,
/// and the multiplication restores it exactly, subnormals included.
__device__ inline uint32_t bf16_pair_of_e4m3(uint32_t word) {
  uint32_t bits = ((word >> 4) & 0x07F007F0U) | (word & 0x80008000U);
  const uint32_t two_to_120 = 0x7B807B80U;
  uint32_t result;
  asm("{ .reg .b32 zero; mov.b32 zero, 0x80008000; fma.rn.bf16x2 %0, %1, %2, zero; }"
      : "=r"(result)
      : "r"(bits), "r"(two_to_120));
  return result;
}

/// sums += unit * activations. `activations` points to this lane's activation row (column g of B)
/// in shared memory at the unit's first column, in the order of store_staged().
///   sums: c[0], c[1] = row g, activation rows 2t and 2t + 1; c[2], c[3] = row g + 8
template <typename W>
__device__ inline void multiply_unit(const UnitRegisters& unit, const __nv_bfloat16* activations,
                                     float (&sums)[4]) {
  const int t = threadIdx.x % 4;
  if constexpr (sizeof(W) == 1) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 128 columns share a scale
      float c[4] = {0, 0, 0, 0};
#pragma unroll
      for (int group = 2 * half; group < 2 * half + 2; ++group) {
        const auto* x = reinterpret_cast<const uint4*>(activations + group * 64 + t * 16);
        const uint4 x0 = x[0];
        const uint4 x1 = x[1];
        const uint32_t b[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
        const uint32_t lower[4] = {unit.lower[group].x, unit.lower[group].y, unit.lower[group].z,
                                   unit.lower[group].w};
        const uint32_t upper[4] = {unit.upper[group].x, unit.upper[group].y, unit.upper[group].z,
                                   unit.upper[group].w};
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const uint32_t a[4] = {bf16_pair_of_e4m3(lower[word] << 8),
                                 bf16_pair_of_e4m3(upper[word] << 8),
                                 bf16_pair_of_e4m3(lower[word]), bf16_pair_of_e4m3(upper[word])};
          mma_bf16(c, a, b[2 * word], b[2 * word + 1]);
        }
      }
      sums[0] += c[0] * unit.scales[half];
      sums[1] += c[1] * unit.scales[half];
      sums[2] += c[2] * unit.scales[2 + half];
      sums[3] += c[3] * unit.scales[2 + half];
    }
  } else {
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      const uint4 x = *reinterpret_cast<const uint4*>(activations + group * 32 + t * 8);
      const uint4 lower = unit.lower[group];
      const uint4 upper = unit.upper[group];
      const uint32_t a0[4] = {lower.x, upper.x, lower.y, upper.y};
      mma_bf16(sums, a0, x.x, x.y);
      const uint32_t a1[4] = {lower.z, upper.z, lower.w, upper.w};
      mma_bf16(sums, a1, x.z, x.w);
    }
  }
}

/// Writes four neighbouring activation columns (the first a multiple of 4) to a staged row. FP8
/// words bring the columns of each four in the order 0 2 1 3: even bytes first.
template <typename W>
__device__ inline void store_staged(__nv_bfloat16* row, int column, const __nv_bfloat16 (&x)[4]) {
  const auto pair = [](__nv_bfloat16 low, __nv_bfloat16 high) {
    return uint32_t{__bfloat16_as_ushort(low)} | uint32_t{__bfloat16_as_ushort(high)} << 16;
  };
  const uint2 words = sizeof(W) == 1 ? uint2{pair(x[0], x[2]), pair(x[1], x[3])}
                                     : uint2{pair(x[0], x[1]), pair(x[2], x[3])};
  *reinterpret_cast<uint2*>(row + column) = words;
}

/// Elements between staged rows: an odd multiple of 16 bytes modulo 128 keeps the eight rows in
/// different banks. `columns` is rounded up to whole units.
template <typename W>
__host__ __device__ inline int staged_stride(int64_t columns) {
  const int64_t units = (columns + kUnitColumns<W> - 1) / kUnitColumns<W>;
  return static_cast<int>(units * kUnitColumns<W>) + 8;
}

/// Sums of one warp over a run of units inside one tile, waiting to be added to the others'.
struct TileSums {
  float values[kTileRows][kStreamRows];
};

/// Shared memory of a streaming block behind the staged activations. Warp w leaves its sums of tile
/// t in slot w + t: along the line of units either the warp or the tile goes up by one from slot to
/// slot, so the slots of a tile are neighbours, in the order of its columns.
struct StreamScratch {
  TileSums slots[kStreamWarps + kTilesPerPass];
};

/// First of `count` things that part `index` of `parts` takes when they are dealt out evenly. In 32
/// bits: count * parts stays below 2^32.
__host__ __device__ inline int share_begin(int count, int index, int parts) {
  return static_cast<int>(static_cast<unsigned>(count) * static_cast<unsigned>(index) /
                          static_cast<unsigned>(parts));
}

/// Asks for bytes to be brought into the L2 cache by the whole block; waits for nothing.
__device__ inline void prefetch_to_l2(const void* begin, int64_t num_bytes) {
  const auto* bytes = static_cast<const uint8_t*>(begin);
  for (int64_t offset = int64_t{threadIdx.x} * 128; offset < num_bytes;
       offset += kStreamThreads * 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(bytes + offset));
  }
}

/// Products of staged activations with a run of tiles, all warps of the block together. `locate`
/// maps a tile number to its TileRows; `store(tile, row, column, lower, upper)` takes the sums of
/// weight rows `row` (0..7) and `row` + 8 of the tile for activation row `column`.
template <typename W>
struct TileStream {
  int64_t row_bytes;     // between consecutive weight rows
  int64_t extent_bytes;  // of each row that take part, from TileRows' pointers on
  int units;

  __device__ TileStream(int64_t row_columns, int64_t columns)
      : row_bytes(row_columns * static_cast<int64_t>(sizeof(W))),
        extent_bytes(columns * static_cast<int64_t>(sizeof(W))),
        units(static_cast<int>((extent_bytes + kUnitBytes - 1) / kUnitBytes)) {}

  /// A lane's place in its two weight rows.
  struct Cursor {
    const uint8_t* lower;
    const uint8_t* upper;
    const float* lower_scales;
    const float* upper_scales;
    int bytes_left;  // of the row from here on
  };

  /// Rows beyond the end repeat the last one: their sums are never stored.
  __device__ Cursor cursor(const TileRows& rows, int unit) const {
    const int lane = threadIdx.x % 32;
    const int64_t offset = int64_t{unit} * kUnitBytes + (lane % 4) * 16;
    Cursor at;
    at.lower = rows.lower + min(lane / 4, rows.lower_rows - 1) * row_bytes + offset;
    at.upper = rows.upper + min(lane / 4, rows.upper_rows - 1) * row_bytes + offset;
    at.lower_scales = rows.lower_scales + 2 * unit;
    at.upper_scales = rows.upper_scales + 2 * unit;
    at.bytes_left = static_cast<int>(extent_bytes) - static_cast<int>(offset);
    return at;
  }

  __device__ static void advance(Cursor& at) {
    at.lower += kUnitBytes;
    at.upper += kUnitBytes;
    at.lower_scales += 2;
    at.upper_scales += 2;
    at.bytes_left -= kUnitBytes;
  }

  /// Starts the loads of one unit; columns beyond the extent read as zero.
  __device__ void load(const Cursor& at, UnitRegisters& registers) const {
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      const bool inside = group * 64 < at.bytes_left;
      registers.lower[group] = inside ? load_stream(at.lower + group * 64) : uint4{0, 0, 0, 0};
      registers.upper[group] = inside ? load_stream(at.upper + group * 64) : uint4{0, 0, 0, 0};
    }
    if constexpr (sizeof(W) == 1) {
      // Whole blocks of 128 columns, the last one perhaps shorter: the lane's offset is below 64.
      const bool second = 128 < at.bytes_left + (threadIdx.x % 4) * 16;
      registers.scales[0] = __ldg(at.lower_scales);
      registers.scales[2] = __ldg(at.upper_scales);
      registers.scales[1] = second ? __ldg(at.lower_scales + 1) : 0;
      registers.scales[3] = second ? __ldg(at.upper_scales + 1) : 0;
    }
  }

  /// Starts this warp's first loads before the activations exist.
  template <typename Locate>
  __device__ void load_first(int first_tile, int last_tile, const Locate& locate,
                             UnitRegisters& registers) const {
    const int total = min(last_tile - first_tile, kTilesPerPass) * units;
    const int warp = threadIdx.x / 32;
    const int first = share_begin(total, warp, kStreamWarps);
    registers = UnitRegisters{};
    if (first < share_begin(total, warp + 1, kStreamWarps)) {
      load(cursor(locate(first_tile + first / units), first % units), registers);
    }
  }

  /// `registers` hold what load_first() of the same tiles began. Ends with all warps past the last
  /// store; `staged` may be overwritten then.
  template <typename Locate, typename Store>
  __device__ void multiply(int first_tile, int last_tile, const __nv_bfloat16* staged,
                           int staged_rows, int stride, StreamScratch& scratch,
                           UnitRegisters& registers, const Locate& locate,
                           const Store& store) const {
    const int warp = threadIdx.x / 32;
    const __nv_bfloat16* activations =
        staged + min(static_cast<int>(threadIdx.x % 32) / 4, staged_rows - 1) * stride;
#pragma unroll 1
    for (int pass = first_tile; pass < last_tile; pass += kTilesPerPass) {
      const int tiles = min(last_tile - pass, kTilesPerPass);
      const int total = tiles * units;
      const int first = share_begin(total, warp, kStreamWarps);
      const int last = share_begin(total, warp + 1, kStreamWarps);
      int tile = min(first / units, tiles - 1);
      int unit = first - tile * units;
      Cursor at = cursor(locate(pass + tile), unit);
      float sums[4] = {0, 0, 0, 0};
      if (first == last) leave(scratch.slots[warp + tile], sums);
#pragma unroll 1
      for (int index = first; index < last; ++index) {
        const UnitRegisters current = registers;
        const __nv_bfloat16* x = activations + unit * kUnitColumns<W>;
        const int slot = warp + tile;
        ++unit;
        const bool ends_tile = unit == units;
        if (index + 1 < last) {
          if (ends_tile) {
            unit = 0;
            at = cursor(locate(pass + ++tile), 0);
          } else {
            advance(at);
          }
          load(at, registers);
        }
        multiply_unit<W>(current, x, sums);
        if (ends_tile || index + 1 == last) {
          leave(scratch.slots[slot], sums);
          sums[0] = sums[1] = sums[2] = sums[3] = 0;
        }
      }
      // The next pass's weights are on their way while this one's sums are added.
      if (pass + kTilesPerPass < last_tile) {
        load_first(pass + kTilesPerPass, last_tile, locate, registers);
      }
      __syncthreads();
      add_up(tiles, pass, staged_rows, scratch, store);
      __syncthreads();
    }
  }

 private:
  __device__ static void leave(TileSums& slot, const float (&sums)[4]) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
    *reinterpret_cast<float2*>(&slot.values[g][2 * t]) = {sums[0], sums[1]};
    *reinterpret_cast<float2*>(&slot.values[g + 8][2 * t]) = {sums[2], sums[3]};
  }

  /// The warp whose run holds unit `unit` of a pass of `total`.
  __device__ static int warp_of(int unit, int total) {
    return (kStreamWarps * (unit + 1) + total - 1) / total - 1;
  }

  // Adds the warps' runs of each tile in the order of their columns: the same sum every time.
  template <typename Store>
  __device__ void add_up(int tiles, int pass, int staged_rows, const StreamScratch& scratch,
                         const Store& store) const {
    const int total = tiles * units;
    for (int item = threadIdx.x; item < tiles * 8 * kStreamRows; item += kStreamThreads) {
      const int tile = item / (8 * kStreamRows);
      const int row = item / kStreamRows % 8;
      const int column = item % kStreamRows;
      if (column >= staged_rows) continue;
      const int first = warp_of(tile * units, total) + tile;
      const int last = warp_of(tile * units + units - 1, total) + tile;
      float lower = 0;
      float upper = 0;
#pragma unroll 4
      for (int slot = first; slot <= last; ++slot) {
        lower += scratch.slots[slot].values[row][column];
        upper += scratch.slots[slot].values[row + 8][column];
      }
      store(pass + tile, row, column, lower, upper);
    }
  }
};

}  // namespace glimpse::cuda
