// The stream of weights of few activation rows through a ring in shared memory: a warp's loads run
// ahead through all products of all layers and never wait for activations, only for room.
//
// A lane copies (cp.async) exactly the pieces that it multiplies later, so a warp's ring needs no
// barrier and no padding: its pieces lie side by side, one per lane. Only the scales of FP8 weights
// are read by other lanes of the warp.
#pragma once

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {

/// A unit of 16 rows x 128 bytes on its way through shared memory.
struct RingUnit {
  uint4 pieces[4][32];  // lower[0], lower[1], upper[0], upper[1] of each lane
  float scales[16];     // FP8 only: of rows g, then of rows g + 8
};

/// Where a lane finds its pieces of the next unit; `scale` is that of its lower row in even lanes,
/// of its upper row in odd ones.
struct LanePieces {
  const uint8_t* lower;
  const uint8_t* upper;
  const float* scale;
};

template <int kBytes>
__device__ inline void copy_async(void* to, const void* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(from)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
  }
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
/// `LanePieces at` of the next one, `bool is_done`, advance().
template <typename W, int kDepth, typename Cursor>
struct WeightRing {
  RingUnit* units;  // [kDepth], this warp's
  Cursor cursor;
  int slot = 0;  // of the next unit to use

  __device__ WeightRing(RingUnit* ring, const Cursor& from) : units(ring), cursor(from) {
#pragma unroll 1
    for (int i = 0; i < kDepth; ++i) refill(i);
  }

  /// Multiplies this warp's units of a pass with the staged activations and leaves the sums in the
  /// slots. Two units at a time: what the products of one wait for, those of the other hide.
  template <int kRows>
  __device__ void multiply(const PassPlan& plan, const Staged& staged, int rows,
                           TileSums<kRows>* slots) {
    int left = plan.count();
    if (left == 0) return;
    const int first = plan.first();
    const int first_tile = plan.units.divide(first);
    int column = first - first_tile * plan.units.d;  // in units
    TileSums<kRows>* sums_slot = slots + first_tile + threadIdx.x / 32;
    const uint16_t* const row =
        staged.values + min(static_cast<int>(threadIdx.x % 32) / 4, rows - 1) * staged.stride;
#pragma unroll 1
    do {
      // What the warp has of one tile.
      int count = min(plan.units.d - column, left);
      left -= count;
      const uint16_t* x = row + column * kUnitColumns<W>;
      const float* x_scales = staged.scales + column * kStreamRows;
      float sums[4] = {0, 0, 0, 0};
#pragma unroll 1
      for (; count >= 2; count -= 2) {
        wait_for_copies<kDepth - 2>();
        __syncwarp();
        UnitRegisters unit;
        UnitRegisters next;
        const int second = after(slot);
        read(slot, unit);
        read(second, next);
        __syncwarp();
        refill(slot);
        refill(second);
        slot = after(second);
        float more[4] = {0, 0, 0, 0};
        multiply_unit<W>(unit, x, x_scales, sums);
        multiply_unit<W>(next, x + kUnitColumns<W>, x_scales + kStreamRows, more);
        x += 2 * kUnitColumns<W>;
        x_scales += 2 * kStreamRows;
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] += more[i];
      }
      if (count > 0) {
        wait_for_copies<kDepth - 1>();
        __syncwarp();
        UnitRegisters unit;
        read(slot, unit);
        __syncwarp();
        refill(slot);
        slot = after(slot);
        multiply_unit<W>(unit, x, x_scales, sums);
      }
      leave_sums(*sums_slot, rows, sums);
      ++sums_slot;
      column = 0;
    } while (left > 0);
  }

 private:
  __device__ static int after(int i) {
    return i + 1 == kDepth ? 0 : i + 1;
  }

  __device__ void read(int i, UnitRegisters& unit) const {
    const int lane = threadIdx.x % 32;
    const RingUnit& from = units[i];
    unit.lower[0] = from.pieces[0][lane];
    unit.lower[1] = from.pieces[1][lane];
    unit.upper[0] = from.pieces[2][lane];
    unit.upper[1] = from.pieces[3][lane];
    if constexpr (sizeof(W) == 1) {
      unit.lower_scale = from.scales[lane / 4];
      unit.upper_scale = from.scales[lane / 4 + 8];
    }
  }

  __device__ void refill(int i) {
    const int lane = threadIdx.x % 32;
    if (!cursor.is_done()) {
      RingUnit& to = units[i];
      const LanePieces& at = cursor.at;
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        copy_async<16>(&to.pieces[group][lane], at.lower + group * 64);
        copy_async<16>(&to.pieces[2 + group][lane], at.upper + group * 64);
      }
      if constexpr (sizeof(W) == 1) {
        if (lane % 4 < 2) {
          copy_async<4>(&to.scales[lane / 4 + lane % 2 * 8], at.scale);
        }
      }
      cursor.advance();
    }
    commit_copies();
  }
};

}  // namespace glimpse::cuda
