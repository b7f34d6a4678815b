// The stream of weights through a ring in shared memory: a warp's copies run ahead through all
// products of all layers and never wait for activations, only for room.
//
// A warp has columns of its own in each product and multiplies them with all of the block's rows:
// the activations beside them are the mma's B operand and stay in its registers. A lane copies
// (cp.async) exactly the pieces that it multiplies later, so a warp's ring needs no barrier and no
// padding.
#pragma once

#include "cuda/weight_stream.cuh"

namespace glimpse::cuda {

/// What a warp copies at a time: 64 bytes of each of 16 weight rows, of which lane (g, t) =
/// (lane / 4, lane % 4) has pieces t of rows g and g + 8; see weight_stream.cuh.
struct RingGroup {
  uint4 lower[32];
  uint4 upper[32];
};
inline constexpr int kGroupBytes = 64;
template <typename W>
inline constexpr int kGroupColumns = kGroupBytes / static_cast<int>(sizeof(W));
/// Rows of half a tile.
inline constexpr int kHalfRows = 8;

/// Where a lane finds its pieces of the next unit: `groups` of a tile, side by side.
struct LanePieces {
  const uint8_t* lower;
  const uint8_t* upper;
  int groups;
};

/// 16 bytes straight to shared memory, if they are wanted.
__device__ inline void copy_async(uint32_t to, const void* from, uint64_t policy, bool wanted) {
  asm volatile(
      "{ .reg .pred wanted; setp.ne.u32 wanted, %3, 0; "
      "@wanted cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2; }" ::"r"(to),
      "l"(from), "l"(policy), "r"(static_cast<uint32_t>(wanted))
      : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Until at most `kPending` of this thread's commits are under way.
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

/// A lane's pieces of a unit.
template <int kGroups>
struct RingUnit {
  uint4 lower[kGroups];
  uint4 upper[kGroups];
};

/// Groups of a tile that a warp copies and multiplies at once, and whose activations it holds: at
/// most five, a warp's part of 2,560 columns of FP8.
inline constexpr int kUnitGroups = 5;

/// Groups of a unit where a warp has `count` of a row and a unit has room for `most`: units of
/// nearly the same size.
__host__ __device__ inline int unit_groups_of(int count, int most) {
  const int units = (count + most - 1) / most;
  return units > 0 ? (count + units - 1) / units : 1;
}

/// A warp's part of the ring: the unit that it takes next and the one behind. `Cursor` knows the
/// units in the order in which the warp uses them: `LanePieces at` of the next one, of no groups
/// behind the last; step() goes to the next tile's, which it has run() times at least, and turn()
/// is due behind those. `policy`: of the weights in L2; nobody reads one again before all others
/// have passed through.
template <typename Cursor>
struct WeightRing {
  static constexpr int kUnits = 2;

  Cursor cursor;
  const uint64_t& policy;
  uint32_t next;    // this lane's first piece of the next unit to use
  uint32_t behind;  // of the one behind it

  /// `ring`: the warps' units, each of `unit_groups`, in shared memory.
  __device__ WeightRing(const Cursor& from, const void* ring, int unit_groups,
                        const uint64_t& of_weights)
      : cursor(from), policy(of_weights) {
    const uint32_t unit_bytes = unit_groups * kGroup;
    next = static_cast<uint32_t>(__cvta_generic_to_shared(ring)) +
           threadIdx.x / 32 * kUnits * unit_bytes +
           threadIdx.x % 32 * static_cast<uint32_t>(sizeof(uint4));
    behind = next + unit_bytes;
#pragma unroll 1
    for (int i = 0; i < kUnits; ++i) {
      refill();
      if (cursor.run() == 0) cursor.turn();
    }
  }

  /// Takes the next unit, of kGroups, out of the ring.
  template <int kGroups>
  __device__ RingUnit<kGroups> take() {
    wait_for_copies<kUnits - 1>();
    RingUnit<kGroups> unit;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      unit.lower[i] = load_shared(next + i * kGroup);
      unit.upper[i] = load_shared(next + i * kGroup + kGroup / 2);
    }
    refill();
    return unit;
  }

 private:
  static constexpr uint32_t kGroup = sizeof(RingGroup);

  /// The unit that comes second takes the next one's place.
  __device__ void refill() {
    const LanePieces& at = cursor.at;
#pragma unroll
    for (int i = 0; i < kUnitGroups; ++i) {
      const bool wanted = i < at.groups;
      copy_async(next + i * kGroup, at.lower + i * kGroupBytes, policy, wanted);
      copy_async(next + i * kGroup + kGroup / 2, at.upper + i * kGroupBytes, policy, wanted);
    }
    commit_copies();
    const uint32_t filled = next;
    next = behind;
    behind = filled;
    cursor.step();
  }
};

}  // namespace glimpse::cuda
