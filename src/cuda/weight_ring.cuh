// The stream of weights through a ring in shared memory: a warp's loads run ahead through all
// products of all layers and never wait for activations, only for room.
//
// A lane copies (cp.async) exactly the pieces that it multiplies later, so a warp's ring needs no
// barrier and no padding: its pieces lie side by side, one per lane. Only the scales of FP8 weights
// are read by other lanes of the warp.
#pragma once

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {

/// A unit of 16 rows x kBytes on its way through shared memory.
template <int kBytes>
struct RingUnit {
  static constexpr int kGroups = kBytes / 64;  // of 64 bytes of a row
  static constexpr int kParts = kBytes / kUnitBytes;
  uint4 lower[kGroups][32];  // each lane's pieces of row g
  uint4 upper[kGroups][32];  // of row g + 8
  float scales[16][kParts];  // FP8 only: of each row's blocks of 128 columns
};

/// Where a lane finds its pieces of the next unit, and its one of the unit's scales.
struct LanePieces {
  const uint8_t* lower;
  const uint8_t* upper;
  const float* scale;
};

/// 16 bytes straight to shared memory; zeros where they are not `wanted`.
__device__ inline void copy_async(uint32_t to, const void* from, bool wanted) {
  asm volatile(
      "{ .reg .pred skip; setp.eq.u32 skip, %2, 0; "
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, skip; }" ::"r"(to),
      "l"(from), "r"(static_cast<uint32_t>(wanted))
      : "memory");
}
__device__ inline void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from)
               : "memory");
}
__device__ inline void copy_word_async(uint32_t to, const void* from, bool wanted) {
  asm volatile(
      "{ .reg .pred skip; setp.eq.u32 skip, %2, 0; "
      "cp.async.ca.shared.global [%0], [%1], 4, skip; }" ::"r"(to),
      "l"(from), "r"(static_cast<uint32_t>(wanted))
      : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Until at most `kPending` of this thread's groups of copies are under way.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// A warp's part of the ring. `Cursor` knows the units in the order in which the warp uses them:
/// `LanePieces at` of the next one, `bool is_done()`, `bool is_half()` where a row ends in the
/// middle of it, advance(). The ring is where the block's shared memory begins, so that its place
/// costs no registers.
template <typename W, int kBytes, int kDepth, typename Cursor>
struct WeightRing {
  using Unit = RingUnit<kBytes>;
  static constexpr int kParts = Unit::kParts;
  struct Registers {
    UnitRegisters parts[kParts];

    __device__ Registers() {
#pragma unroll
      for (UnitRegisters& part : parts) forget(part);
    }
  };

  Cursor cursor;
  int slot = 0;  // of the next unit to use

  __device__ explicit WeightRing(const Cursor& from) : cursor(from) {
#pragma unroll 1
    for (int i = 0; i < kDepth; ++i) refill(i);
  }

  /// Takes a pass's first unit out of the ring: while activations are waited for.
  __device__ void begin(const PassPlan& plan, Registers& registers) {
    if (plan.count() > 0) fetch(registers);
  }

  /// Multiplies this warp's units of the pass that was begun with the staged activations and leaves
  /// the sums in the slots. `row_parts`: how many times 128 bytes a row has.
  template <int kRows>
  __device__ void multiply(const PassPlan& plan, Registers& registers, int row_parts,
                           const Staged& staged, int rows, TileSums<kRows>* slots) {
    int left = plan.count();
    if (left == 0) return;
    const int first_unit = plan.first();
    const int first_tile = plan.units.divide(first_unit);
    Place place;
    place.unit = first_unit - first_tile * plan.units.d;
    TileSums<kRows>* sums_slot = slots + first_tile + threadIdx.x / 32;
    const uint16_t* const row =
        staged.values + min(static_cast<int>(threadIdx.x % 32) / 4, rows - 1) * staged.stride;
    const auto seek = [&] {
      place.x = row + place.unit * kParts * kUnitColumns<W>;
      place.scales = staged.scales + place.unit * kParts * staged.scale_rows;
    };
    seek();
    float sums[kParts][4] = {};
#pragma unroll 1
    for (;;) {
      --left;
      // Where a row ends in the middle of a unit the weights are zeros: any activations will do.
      const int parts = row_parts - place.unit * kParts;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int at = part == 0 || part < parts ? part : 0;
        multiply_unit<W, kRows>(registers.parts[part], place.x + at * kUnitColumns<W>,
                                place.scales + at * staged.scale_rows, sums[part]);
      }
      ++place.unit;
      place.x += kParts * kUnitColumns<W>;
      place.scales += kParts * staged.scale_rows;
      if (place.unit == plan.units.d || left == 0) {
#pragma unroll
        for (int part = 1; part < kParts; ++part) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[0][i] += sums[part][i];
        }
        leave_sums(*sums_slot, rows, sums[0]);
        if (left == 0) return;
        ++sums_slot;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[part][i] = 0;
        }
        place.unit = 0;
        seek();
      }
      fetch(registers);
    }
  }

 private:
  /// Of the next unit to multiply: its place in the row, and its activations.
  struct Place {
    int unit;
    const uint16_t* x;
    const float* scales;
  };

  __device__ static Unit& unit_of(int slot) {
    extern __shared__ __align__(16) uint8_t shared[];
    return reinterpret_cast<Unit*>(shared)[static_cast<int>(threadIdx.x) / 32 * kDepth + slot];
  }

  __device__ void fetch(Registers& registers) {
    wait_for_copies<kDepth - 1>();
    __syncwarp();
    read(slot, registers);
    __syncwarp();
    refill(slot);
    slot = slot + 1 == kDepth ? 0 : slot + 1;
  }

  __device__ void read(int i, Registers& registers) const {
    const int lane = threadIdx.x % 32;
    const Unit& from = unit_of(i);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        registers.parts[part].lower[group] = from.lower[2 * part + group][lane];
        registers.parts[part].upper[group] = from.upper[2 * part + group][lane];
      }
      if constexpr (sizeof(W) == 1) {
        registers.parts[part].lower_scale = from.scales[lane / 4][part];
        registers.parts[part].upper_scale = from.scales[lane / 4 + 8][part];
      }
    }
  }

  __device__ void refill(int i) {
    const int lane = threadIdx.x % 32;
    if (!cursor.is_done()) {
      Unit& to = unit_of(i);
      const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(&to)) + lane * 16;
      const LanePieces& at = cursor.at;
      const bool whole = !cursor.is_half();
#pragma unroll
      for (int group = 0; group < Unit::kGroups; ++group) {
        const uint32_t lower = base + group * static_cast<int>(sizeof(to.lower[0]));
        const uint32_t upper = lower + static_cast<int>(sizeof(to.lower));
        if (group < 2) {
          copy_async(lower, at.lower + group * 64);
          copy_async(upper, at.upper + group * 64);
        } else {
          copy_async(lower, at.lower + group * 64, whole);
          copy_async(upper, at.upper + group * 64, whole);
        }
      }
      if constexpr (sizeof(W) == 1) {
        if (lane < 16 * kParts) {
          copy_word_async(base + static_cast<int>(2 * sizeof(to.lower)) - lane * 12, at.scale,
                          kParts == 1 || whole || lane % 2 == 0);
        }
      }
      cursor.advance();
    }
    commit_copies();
  }
};

}  // namespace glimpse::cuda
