// The stream of weights through a ring in shared memory: a warp's loads run ahead through all
// products of all layers and never wait for activations, only for room.
//
// A lane copies (cp.async) exactly the pieces that it multiplies later, so a warp's ring needs no
// barrier and no padding: its pieces lie side by side, one per lane, and two pointers find all of
// them.
#pragma once

#include <type_traits>

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {

/// What a warp copies and multiplies at a time. With up to kFewRows activation rows 8 weight rows x
/// 512 bytes: of each line of 128 bytes lane (g, t) has piece t of its half g / 4, so that a copy
/// touches whole lines, which costs shared memory half as much as twice as many halves. With more,
/// for which the mma has no columns left, 16 rows x 128 bytes; see weight_stream.cuh.
template <bool kMany>
struct RingUnit {
  static constexpr int kGroups = kMany ? 2 : 4;
  static constexpr int kGroupBytes = kMany ? 64 : kUnitBytes;  // of a row, from group to group
  static constexpr int kBytes = kGroups * kGroupBytes;         // of a row
  static constexpr int kParts = kBytes / kUnitBytes;
  static constexpr int kHalfRows = kMany ? 8 : 4;  // of half a unit
  uint4 lower[kGroups][32];                        // each lane's pieces of row g, or g % 4
  uint4 upper[kGroups][32];                        // of the row as many further on
};

/// Where a lane finds its pieces of the next unit.
struct LanePieces {
  const uint8_t* lower;
  const uint8_t* upper;
};

/// 16 bytes straight to shared memory.
__device__ inline void copy_async(uint32_t to, const void* from, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from), "l"(policy)
               : "memory");
}
/// 16 bytes of zeros in its place; `from` is not read.
__device__ inline void clear_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, 0;" ::"r"(to), "l"(from) : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Until at most `kPending` of this thread's groups of copies are under way.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline uint4 load_shared(uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from));
  return words;
}

/// 16 bytes of shared memory where they are `wanted`; what was there before otherwise.
__device__ inline void load_if(uint4& to, uint32_t address, bool wanted) {
  asm volatile(
      "{ .reg .pred wanted; setp.ne.u32 wanted, %5, 0; "
      "@wanted ld.shared.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(to.x), "+r"(to.y), "+r"(to.z), "+r"(to.w)
      : "r"(address), "r"(static_cast<uint32_t>(wanted)));
}

/// The scales of an FP8 product's weights in shared memory: of a block's rows, of both matrices
/// where there are two, [blocks of 128 rows, blocks of 128 columns, padded to whole units].
struct ScaleTable {
  const float* scales;
  int first_block;  // of rows
  int stride;
  int upper;  // floats to the second matrix's, where there is one
};

/// A pass's units as a warp multiplies them.
struct RingPass {
  const PassPlan& plan;
  const TileRows& rows;
  int first_tile;
  int row_parts;  // how many times 128 bytes a row has
  ScaleTable scales;
  bool adds;  // to the sums in the slots
};

/// A warp's part of the ring. `Cursor` knows the units in the order in which the warp uses them:
/// `LanePieces at` of the next one, `bool is_done()`, `int groups()` that its rows have, advance().
/// `policy`: of the weights in L2; nobody reads one again before all others have passed through.
template <typename W, bool kMany, int kDepth, typename Cursor>
struct WeightRing {
  using Unit = RingUnit<kMany>;
  static constexpr int kGroups = Unit::kGroups;
  static constexpr int kColumns = Unit::kBytes / static_cast<int>(sizeof(W));
  struct Registers {
    uint4 lower[kGroups];
    uint4 upper[kGroups];

    __device__ Registers() {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        forget(lower[i]);
        forget(upper[i]);
      }
    }
  };

  Cursor cursor;
  const uint64_t& policy;
  uint32_t begin_of_ring;  // this lane's first piece
  uint32_t next;           // of the next unit to use

  /// `ring`: the warps' units, in shared memory.
  __device__ WeightRing(const Cursor& from, const void* ring, const uint64_t& of_weights)
      : cursor(from), policy(of_weights) {
    const auto units = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
    begin_of_ring = units + threadIdx.x / 32 * kDepth * static_cast<uint32_t>(sizeof(Unit)) +
                    threadIdx.x % 32 * static_cast<uint32_t>(sizeof(uint4));
    next = begin_of_ring;
#pragma unroll 1
    for (int i = 0; i < kDepth; ++i) {
      refill(next);
      advance();
    }
  }

  /// Takes a pass's first unit out of the ring: while activations are waited for.
  __device__ void begin(const PassPlan& plan, Registers& registers) {
    if (plan.count() == 0) return;
    fetch(registers);
  }

  /// Multiplies this warp's units of the pass that was begun with the staged activations and leaves
  /// the sums in the slots.
  template <int kRows>
  __device__ void multiply(const RingPass& pass, Registers& registers, const Staged& staged,
                           int rows, TileSums<kRows>* slots) {
    const PassPlan& plan = pass.plan;
    int left = plan.count();
    if (left == 0) return;
    const int first_unit = plan.first();
    const int warp_tile = plan.units.divide(first_unit);
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    const int t = static_cast<int>(threadIdx.x) % 4;
    // Few rows: columns 2i and 2i + 1 of the B operand are the rows' half i of each line.
    const int x_row = min(kMany ? g : g % 2, rows - 1);
    constexpr int kPieceColumns = 16 / static_cast<int>(sizeof(W));
    const uint16_t* const lane_row =
        staged.values + x_row * staged.stride +
        (kMany ? 0 : g / 2 % 2 * (kUnitColumns<W> / 2) + t * kPieceColumns);
    XPlace row;
    if constexpr (kMany) {
      row = lane_row;
    } else {
      row = static_cast<uint32_t>(__cvta_generic_to_shared(lane_row));
    }
    Place place;
    place.tile = pass.first_tile + warp_tile;
    place.unit = first_unit - warp_tile * plan.units.d;
    TileSums<kRows>* sums_slot = slots + warp_tile + threadIdx.x / 32;
    const auto seek = [&] {
      place.x = row + place.unit * kXStep;
      place.x_scales = staged.scales + place.unit * Unit::kParts * staged.scale_rows;
      if constexpr (sizeof(W) == 1) {
        const auto scales_of = [&](bool is_upper) {
          const int block =
              pass.rows.row_of(place.tile, g % Unit::kHalfRows, is_upper) / kBlockColumns -
              pass.scales.first_block;
          return pass.scales.scales + block * pass.scales.stride + place.unit * Unit::kParts +
                 (is_upper ? pass.scales.upper : 0);
        };
        place.lower_scales = scales_of(false);
        place.upper_scales = scales_of(true);
      }
    };
    seek();
    float sums[4] = {};
    uint4 x[kGroups][2];
    if constexpr (!kMany) {
#pragma unroll
      for (uint4(&of_group)[2] : x) of_group[0] = of_group[1] = {0, 0, 0, 0};
    }
#pragma unroll 1
    for (;;) {
      --left;
      if constexpr (kMany) {
        UnitRegisters unit;
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          unit.lower[group] = registers.lower[group];
          unit.upper[group] = registers.upper[group];
        }
        if constexpr (sizeof(W) == 1) {
          unit.lower_scale = *place.lower_scales;
          unit.upper_scale = *place.upper_scales;
        }
        multiply_unit<W>(unit, place.x, place.x_scales, sums);
      } else {
        // Where a row ends within a unit the weights are zeros: the activations before will do.
        const int groups = g < 4 && g % 2 < rows ? pass.row_parts - place.unit * kGroups : 0;
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          const uint32_t from = place.x + i * kXStep / kGroups;
          load_if(x[i][0], from, i < groups);
          if (sizeof(W) == 1) load_if(x[i][1], from + sizeof(uint4), i < groups);
        }
        multiply_lines<0>(registers, x, place, sums);
        multiply_lines<kGroups / 2>(registers, x, place, sums);
      }
      ++place.unit;
      place.x += kXStep;
      place.x_scales += Unit::kParts * staged.scale_rows;
      place.lower_scales += Unit::kParts;
      place.upper_scales += Unit::kParts;
      if (place.unit == plan.units.d || left == 0) {
        leave_sums(*sums_slot, rows, pass.adds, sums);
        if (left == 0) return;
        ++sums_slot;
        ++place.tile;
        place.unit = 0;
#pragma unroll
        for (float& sum : sums) sum = 0;
        seek();
      }
      fetch(registers);
    }
  }

 private:
  // Activations by pointer or, of few rows, by address in shared memory.
  using XPlace = std::conditional_t<kMany, const uint16_t*, uint32_t>;
  static constexpr int kXStep = kMany ? kColumns : kColumns * static_cast<int>(sizeof(uint16_t));
  /// Of the next unit to multiply: its tile and its place in the row, its activations and scales.
  struct Place {
    int tile, unit;
    XPlace x;
    const float* x_scales;
    const float* lower_scales;
    const float* upper_scales;
  };

  /// sums += half a unit, from group kFirst on, * activations, of up to two rows:
  ///   [0], [1] = the lower weight row, both activation rows; [2], [3] = the upper weight row
  template <int kFirst>
  __device__ static void multiply_lines(const Registers& unit, const uint4 (&x)[kGroups][2],
                                        const Place& place, float (&sums)[4]) {
    constexpr int kCount = kGroups / 2;
    if constexpr (sizeof(W) == 1) {
      float c[kCount][4] = {};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int at = kFirst + i;
        multiply_f8(unit.lower[at], unit.upper[at], x[at][0], x[at][1], c[i]);
      }
      static_assert(kCount == 2 || kMany);
      const float2 lower = *reinterpret_cast<const float2*>(place.lower_scales + kFirst);
      const float2 upper = *reinterpret_cast<const float2*>(place.upper_scales + kFirst);
      const float lower_scale[2] = {lower.x, lower.y};
      const float upper_scale[2] = {upper.x, upper.y};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float2 x_scale = reinterpret_cast<const float2*>(place.x_scales)[kFirst + i];
        sums[0] += c[i][0] * (lower_scale[i] * x_scale.x);
        sums[1] += c[i][1] * (lower_scale[i] * x_scale.y);
        sums[2] += c[i][2] * (upper_scale[i] * x_scale.x);
        sums[3] += c[i][3] * (upper_scale[i] * x_scale.y);
      }
    } else {
#pragma unroll
      for (int i = kFirst; i < kFirst + kCount; ++i) {
        multiply_bf16(unit.lower[i], unit.upper[i], x[i][0], sums);
      }
    }
  }

  __device__ void fetch(Registers& registers) {
    wait_for_copies<kDepth - 1>();
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      registers.lower[group] = load_shared(next + group * kStep);
      registers.upper[group] = load_shared(next + (kGroups + group) * kStep);
    }
    refill(next);
    advance();
  }

  __device__ void advance() {
    next += sizeof(Unit);
    if (next - begin_of_ring >= kDepth * sizeof(Unit)) next = begin_of_ring;
  }

  __device__ void refill(uint32_t to) {
    if (!cursor.is_done()) {
      const LanePieces at = cursor.at;
      const int groups = cursor.groups();
      cursor.advance();
      if (groups == kGroups) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          copy_async(to + group * kStep, at.lower + group * Unit::kGroupBytes, policy);
          copy_async(to + (kGroups + group) * kStep, at.upper + group * Unit::kGroupBytes, policy);
        }
      } else {
#pragma unroll 1
        for (int group = 0; group < kGroups; ++group) {
          const uint32_t lower = to + group * kStep;
          const uint32_t upper = lower + kGroups * kStep;
          if (group < groups) {
            copy_async(lower, at.lower + group * Unit::kGroupBytes, policy);
            copy_async(upper, at.upper + group * Unit::kGroupBytes, policy);
          } else {
            clear_async(lower, at.lower);
            clear_async(upper, at.upper);
          }
        }
      }
    }
    commit_copies();
  }

  static constexpr int kStep = sizeof(Unit::lower[0]);
};

}  // namespace glimpse::cuda
