// The kernel of gemm.h. It computes out^T = W x^T: W is the 16-row operand, x the 8-column one, so
// that e4m3 weights are converted straight into the registers the product wants. A block walks its
// share of the line of k steps without a break: copies for the next steps, also those of the next
// tile, are under way while it multiplies or stores.
//
// Any order of k serves as long as x and W agree, and any order of the rows of W as long as the
// store knows it; both are chosen so that every shared access is wide and free of conflicts:
//  - a warp has 64 rows of W in two halves of 32; row g of the lower (upper) 8 of its 16-row tile i
//    is row 32 (i / 2) + 4 g + 2 (i % 2) (+ 1), so a lane holds four neighbouring features of a
//    half and 8 lanes store 64 or 128 bytes of one row of out;
//  - e4m3: a lane gets bytes 4t .. 4t + 3 of 16 from ldmatrix, so it takes x 4t .. 4t + 3 too, with
//    8-byte loads instead of ldmatrix;
//  - code is kept short: a block runs the part outside the k loop once or a few times, so every
//    line of it is fetched from far away (fully unrolled stores once cost 40 us a launch);
//  - a scale belongs to 128 columns of k. The sums are kept in units of the current block's scale
//    and multiplied by old / new when the block changes, which costs no second set of sums.
#pragma once

#include "cuda/gemm.h"
#include "cuda/launch.cuh"
#include "cuda/tensor_core.cuh"

namespace glimpse::cuda {

/// Everything the kernel reads; made from GemmArguments and GemmPlan by launch_gemm().
struct GemmParameters {
  const __nv_bfloat16* x;
  int64_t x_stride;
  const uint8_t* weight[2];
  const float* scales[2];
  const float* bias;
  const float* cosines;
  const float* sines;
  void* out;
  int64_t out_stride;
  int num_rows, out_features, in_features, scale_stride, rotated_features;
  GemmOp op;
  bool out_is_f32;
  int token_tiles, feature_tiles, k_steps, full_waves;
  int num_tiles, shared_blocks;
  int shared_units;  // k steps of the tiles after the full waves
  float4* parts;
  int* counters;  // one per shared tile
};

/// How a thread remembers where its copies come from.
enum class CopyAddresses {
  first_and_offsets,  // fewest registers: addresses are made anew for every copy
  pointers,           // one a copy: no instruction and no register of the moment between copies
};

/// kStep columns of k make a stage.
template <bool kF8, int kTokenCount, int kFeatureCount, int kTokenWarps, int kStep, int kStageCount,
          int kBlocks, CopyAddresses kAddresses>
struct GemmTileConfig {
  static constexpr bool kIsF8 = kF8;
  static constexpr int kTokens = kTokenCount;      // rows of x in a block
  static constexpr int kFeatures = kFeatureCount;  // rows of W in a block
  static constexpr int kWarpsAlongTokens = kTokenWarps;
  static constexpr int kStages = kStageCount;
  static constexpr int kWarpFeatures = 64;
  static constexpr int kWarpTokens = kTokens / kWarpsAlongTokens;
  static constexpr int kThreads = 32 * kWarpsAlongTokens * (kFeatures / kWarpFeatures);
  static constexpr int kTilesF = kWarpFeatures / 16;
  static constexpr int kTilesT = kWarpTokens / 8;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  // What the compiler makes for these cards needs a few registers more; it would spill them.
  static constexpr bool kKeepsPointers = false;
  static constexpr int kResidentBlocks = kBlocks < 2 ? kBlocks : 2;
#else
  static constexpr bool kKeepsPointers = kAddresses == CopyAddresses::pointers;
  static constexpr int kResidentBlocks = kBlocks;
#endif
  static constexpr int kStepK = kStep;
  static constexpr int kRowBytesX = kStepK * 2;
  static constexpr int kRowBytesW = kIsF8 ? kStepK : kStepK * 2;
  static_assert(kIsF8 ? kStepK == 64 : kStepK == 32 || kStepK == 64, "what the layouts know");
  static constexpr int kBytesX = kTokens * kRowBytesX;
  static constexpr int kBytesW = kFeatures * kRowBytesW;
  static constexpr int kStageBytes = kBytesX + kBytesW;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes <= 99 * 1024, "sm_86, 89 and 120 have 99 KiB a block");
};

/// Where a block is on the line: tile, k step, and the end of this stretch of k. Only what is read
/// every step stays in registers; a new stretch is worked out from its number.
struct GemmCursor {
  int stretch = -1;
  int tile = 0, k = 0, k_begin = 0, k_end = 0;

  __device__ explicit GemmCursor(const GemmParameters& p) { next_stretch(p); }
  [[nodiscard]] __device__ bool done() const { return k_end == 0; }
  __device__ void next_stretch(const GemmParameters& p) {
    ++stretch;
    const int grid = static_cast<int>(gridDim.x);
    if (stretch < p.full_waves) {
      tile = stretch * grid + static_cast<int>(blockIdx.x);
      k = k_begin = 0;
      k_end = tile < p.num_tiles ? p.k_steps : 0;
      return;
    }
    if (static_cast<int>(blockIdx.x) >= p.shared_blocks) {
      k_end = 0;
      return;
    }
    const auto units = static_cast<uint32_t>(p.shared_units);
    const auto blocks = static_cast<uint32_t>(p.shared_blocks);
    const int begin = static_cast<int>(blockIdx.x * units / blocks);
    const int end = static_cast<int>((blockIdx.x + 1) * units / blocks);
    const int shared_tile = begin / p.k_steps + stretch - p.full_waves;
    tile = p.full_waves * grid + shared_tile;
    const int first = shared_tile * p.k_steps;
    k = k_begin = max(begin - first, 0);
    k_end = max(min(p.k_steps, end - first), 0);
  }
};

/// Tiles are taken in groups of 16 along the tokens, so that a wave of blocks shares rows of both
/// matrices.
__device__ __forceinline__ void tile_position(const GemmParameters& p, int tile, int& token_tile,
                                              int& feature_tile) {
  constexpr int kGroup = 16;
  const int group_tiles = kGroup * p.feature_tiles;
  const int group = tile / group_tiles;
  const int first = group * kGroup;
  const int height = min(kGroup, p.token_tiles - first);
  const int inside = tile - group * group_tiles;
  feature_tile = inside / height;
  token_tile = first + inside - feature_tile * height;
}

__device__ __forceinline__ float gelu_tanh(float x) {
  // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3); -2 log2(e) inside
  const float u = x * fmaf(x * x, -2.302208198F * 0.044715F, -2.302208198F);
  return x * reciprocal(1.0F + exp2_fast(u));
}

/// Addresses of a thread's copies: chunks of `row_bytes` long rows of one matrix, or of two that
/// are less than 2^30 bytes apart.
template <int kCount, bool kKeepsPointers>
struct RowAddresses {
  const uint8_t* first;
  int offset[kCount];
  __device__ void set(int copy, const uint8_t* matrix, int row, int64_t row_bytes) {
    if (copy == 0) {
      matrix_ = matrix;
      row_ = row;
      first = matrix + row * row_bytes;
    }
    offset[copy] = (row - row_) * static_cast<int>(row_bytes) + static_cast<int>(matrix - matrix_);
  }
  [[nodiscard]] __device__ const uint8_t* at(int copy) const { return first + offset[copy]; }
  __device__ void move(int bytes) { first += bytes; }

 private:
  const uint8_t* matrix_;  // of the first; not kept beyond the last set()
  int row_;
};
template <int kCount>
struct RowAddresses<kCount, true> {
  const uint8_t* address[kCount];
  __device__ void set(int copy, const uint8_t* matrix, int row, int64_t row_bytes) {
    address[copy] = matrix + row * row_bytes;
  }
  [[nodiscard]] __device__ const uint8_t* at(int copy) const { return address[copy]; }
  __device__ void move(int bytes) {
#pragma unroll
    for (const uint8_t*& one : address) one += bytes;
  }
};

template <typename Tile>
class GemmBlock {
 public:
  __device__ GemmBlock(const GemmParameters& parameters, uint32_t shared)
      : p_(parameters),
        shared_(shared),
        lane_(threadIdx.x % 32),
        warp_feature_(threadIdx.x / 32 / Tile::kWarpsAlongTokens),
        warp_token_(threadIdx.x / 32 % Tile::kWarpsAlongTokens),
        is_pair_(parameters.op == GemmOp::silu_mul),
        lane_x_(pinned(lane_position_x())),
        lane_w_(pinned(Tile::kBytesX + lane_position_w())),
        copy_x_(pinned(copy_position_x())),
        copy_w_(pinned(copy_position_w())),
        load_(parameters),
        compute_(parameters) {}

  __device__ void run() {
    if (load_.done()) return;
    begin_load_tile();
#pragma unroll 1
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      if constexpr (Tile::kKeepsPointers) move_copies();
      issue_copies(stage);
    }
    copy_async_wait<Tile::kStages - 1>();
    __syncthreads();
    load_fragments(0, 0, 0);
    int stage = 0;
    while (true) {
      if (compute_.k == compute_.k_begin) {
        begin_sum();
      } else if constexpr (Tile::kIsF8) {
        rescale();
      }
#pragma unroll
      for (int step = 0; step < kStepsK; ++step) {
        load_fragments((step + 1) % 2, stage, (step + 1) % kStepsK);
        if (step == kStepsK - 2) {
          // The last fragments of this stage are on their way to registers, so after the barrier
          // its memory takes new copies; the next stage is complete.
          if constexpr (Tile::kKeepsPointers) move_copies();
          copy_async_wait<Tile::kStages - 2>();
          __syncthreads();
          multiply<0, Tile::kTilesF / 2>(step % 2);
          issue_copies(stage);
          multiply<Tile::kTilesF / 2, Tile::kTilesF>(step % 2);
          stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
        } else {
          multiply<0, Tile::kTilesF>(step % 2);
        }
      }
      if (compute_.k + 1 == compute_.k_end) {
        finish_sum();
        compute_.next_stretch(p_);
        if (compute_.done()) break;
      } else {
        ++compute_.k;
      }
    }
    copy_async_wait<0>();
  }

 private:
  /// Keeps a number in its register, where the compiler would work it out again at every use. Needs
  /// registers to spare: tiles of pointers have them.
  __device__ static uint32_t pinned(uint32_t number) {
    if constexpr (!Tile::kKeepsPointers) return number;
    return __shfl_sync(0xffffffffU, number, static_cast<int>(threadIdx.x) % 32);
  }

  static constexpr int kStepsK = Tile::kStepK / 16;
  static_assert(Tile::kStageBytes % 128 == 0 && Tile::kBytesX % 128 == 0);
  static_assert(kStepsK >= 2 && kStepsK % 2 == 0);
  static constexpr int kChunksX = Tile::kRowBytesX / 16;  // of a row of x
  static constexpr int kChunksW = Tile::kRowBytesW / 16;
  static constexpr int kRowsPerPassX = Tile::kThreads / kChunksX;
  static constexpr int kPassesX = (Tile::kTokens + kRowsPerPassX - 1) / kRowsPerPassX;
  static constexpr int kRowsPerPassW = Tile::kThreads / kChunksW;
  static constexpr int kPassesW = Tile::kFeatures / kRowsPerPassW;
  static constexpr int kHalf = Tile::kWarpFeatures / 2;
  static constexpr int kWeightBytes = Tile::kIsF8 ? 1 : 2;

  // ---- global to shared -----------------------------------------------------------------------
  /// Byte position of a 16-byte chunk in the tile of x. bf16: read by ldmatrix. e4m3: rows of 128
  /// bytes, read 32 bytes a row.
  __device__ static constexpr int position_x(int row, int chunk) {
    if constexpr (Tile::kIsF8) {
      return row * 128 + ((((chunk >> 1) ^ (row & 3)) << 1) + (chunk & 1)) * 16;
    } else if constexpr (Tile::kRowBytesX == 128) {
      return row * 128 + (chunk ^ (row & 7)) * 16;
    } else {
      return row * 64 + (chunk ^ ((row >> 1) & 3)) * 16;
    }
  }
  /// ldmatrix reads rows 4g + constant. Two rows of 64 bytes share a line of 128.
  __device__ static constexpr int position_w(int row, int chunk) {
    if constexpr (Tile::kRowBytesW == 128) {
      return row * 128 + (chunk ^ ((row >> 2) & 7)) * 16;
    } else {
      return (row >> 1) * 128 + ((((row & 1) << 2) + chunk) ^ ((row >> 2) & 7)) * 16;
    }
  }
  /// The place of the chunk at `first`, so many rows further down: lines are added, and in a line
  /// the exclusive-or of both.
  __device__ static uint32_t down(uint32_t first, int position) {
    return (first ^ (position & 127)) + (position & ~127);
  }

  /// Rows beyond the end repeat the last one: what they add is never stored. All addresses but the
  /// column are worked out here, since whatever stands between the products holds them up.
  __device__ void begin_load_tile() {
    int token_tile, feature_tile;
    tile_position(p_, load_.tile, token_tile, feature_tile);
    const int thread = static_cast<int>(threadIdx.x);
    const int row_x = token_tile * Tile::kTokens + thread / kChunksX;
    const int last_x = p_.num_rows - 1;
    // Pointers are moved first.
    const int column = (load_.k - (Tile::kKeepsPointers ? 1 : 0)) * Tile::kStepK;
    columns_left_ = p_.in_features - column;
    const auto* x = reinterpret_cast<const uint8_t*>(p_.x + thread % kChunksX * 8 + column);
#pragma unroll
    for (int pass = 0; pass < kPassesX; ++pass) {
      from_x_.set(pass, x, min(row_x + pass * kRowsPerPassX, last_x), p_.x_stride * 2);
    }
    const int last_w = p_.out_features - 1;
    const int in_row = thread % kChunksW * 16 + column * kWeightBytes;
#pragma unroll
    for (int pass = 0; pass < kPassesW; ++pass) {
      // Of the 64 rows of a warp, the first 32 are the gate's in a pair, the others up's.
      const int in_tile = thread / kChunksW + pass * kRowsPerPassW;
      const bool is_up = is_pair_ && in_tile % Tile::kWarpFeatures >= kHalf;
      const int row = is_pair_ ? feature_tile * (Tile::kFeatures / 2) +
                                     in_tile / Tile::kWarpFeatures * kHalf + in_tile % kHalf
                               : feature_tile * Tile::kFeatures + in_tile;
      from_w_.set(pass, p_.weight[is_up ? 1 : 0] + in_row, min(row, last_w), row_bytes());
    }
  }

  [[nodiscard]] __device__ int64_t row_bytes() const {
    return static_cast<int64_t>(p_.in_features) * kWeightBytes;
  }

  __device__ void issue_copies(int stage) {
    if (!load_.done()) {
      copy_stage(stage);
      if (load_.k + 1 == load_.k_end) {
        load_.next_stretch(p_);
        if (!load_.done()) begin_load_tile();
      } else {
        ++load_.k;
      }
    }
    copy_async_commit();
  }

  __device__ void copy_stage(int stage) {
    const uint32_t to = shared_ + stage * Tile::kStageBytes;
    const int thread = static_cast<int>(threadIdx.x);
    const bool x_is_valid = thread % kChunksX * 8 < columns_left_;
#pragma unroll
    for (int pass = 0; pass < kPassesX; ++pass) {
      const bool is_idle = Tile::kTokens % kRowsPerPassX != 0 &&
                           thread / kChunksX + pass * kRowsPerPassX >= Tile::kTokens;
      if (is_idle) break;
      copy_async(to + down(Tile::kKeepsPointers ? copy_x_ : copy_position_x(),
                           position_x(pass * kRowsPerPassX, 0)),
                 from_x_.at(pass), x_is_valid);
    }
    const bool w_is_valid = thread % kChunksW * (16 / kWeightBytes) < columns_left_;
#pragma unroll
    for (int pass = 0; pass < kPassesW; ++pass) {
      copy_async(to + down(Tile::kKeepsPointers ? copy_w_ : copy_position_w(),
                           position_w(pass * kRowsPerPassW, 0)),
                 from_w_.at(pass), w_is_valid);
    }
    if constexpr (!Tile::kKeepsPointers) move_copies();
  }

  /// To the next step. Pointers long before its copies, and long after those that read the
  /// registers: else each waits for the other.
  __device__ void move_copies() {
    from_x_.move(Tile::kRowBytesX);
    from_w_.move(Tile::kRowBytesW);
    columns_left_ -= Tile::kStepK;
  }

  // ---- shared to registers --------------------------------------------------------------------
  __device__ void load_fragments(int buffer, int stage, int step) {
    const uint32_t tile_x = shared_ + stage * Tile::kStageBytes;
    load_fragments_x(buffer, tile_x, step);
    load_fragments_w(buffer, tile_x, step);
  }

  // A step moves a lane's place by an exclusive-or of its chunk, whatever the row and the stage.
  __device__ void load_fragments_x(int buffer, uint32_t tile, int step) {
    const uint32_t from = tile + (lane_x_ ^ (step * 32));
    if constexpr (Tile::kIsF8) {
#pragma unroll
      for (int j = 0; j < Tile::kTilesT; ++j) {
        load_shared_8_bytes(x_[buffer][j][0], x_[buffer][j][1], from + j * 1024);
      }
    } else {
#pragma unroll
      for (int j = 0; j < Tile::kTilesT; j += 2) {
        uint32_t both[4];
        load_matrix_x4(both, from + j * 8 * Tile::kRowBytesX);
        x_[buffer][j][0] = both[0], x_[buffer][j][1] = both[1];
        x_[buffer][j + 1][0] = both[2], x_[buffer][j + 1][1] = both[3];
      }
    }
  }

  __device__ void load_fragments_w(int buffer, uint32_t tile, int step) {
    const uint32_t from = tile + (lane_w_ ^ (step * (Tile::kIsF8 ? 16 : 32)));
#pragma unroll
    for (int load = 0; load < kLoadsW; ++load) {
      // e4m3: lower and upper rows of 16-row tiles 2 load and 2 load + 1
      const int rows = Tile::kIsF8 ? 32 * load : 32 * (load / 2) + 2 * (load % 2);
      load_matrix_x4(w_[buffer][load], from + rows * Tile::kRowBytesW);
    }
  }

  /// Byte position of this lane's first row at step 0, in the tile of x and in that of W.
  [[nodiscard]] __device__ uint32_t lane_position_x() const {
    const int first = warp_token_ * Tile::kWarpTokens;
    if constexpr (Tile::kIsF8) {
      const int row = first + lane_ / 4;
      return row * 128 + (row & 3) * 32 + lane_ % 4 * 8;
    } else {
      return position_x(first + lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
    }
  }
  [[nodiscard]] __device__ uint32_t lane_position_w() const {
    const int first = warp_feature_ * Tile::kWarpFeatures + 4 * (lane_ % 8);
    return Tile::kIsF8 ? position_w(first + lane_ / 8, 0)
                       : position_w(first + lane_ / 8 % 2, lane_ / 16);
  }

  /// Byte position of this thread's first copy of x and of W.
  [[nodiscard]] __device__ static uint32_t copy_position_x() {
    return position_x(threadIdx.x / kChunksX, threadIdx.x % kChunksX);
  }
  [[nodiscard]] __device__ static uint32_t copy_position_w() {
    return Tile::kBytesX + position_w(threadIdx.x / kChunksW, threadIdx.x % kChunksW);
  }

  template <int kFirst, int kEnd>
  __device__ void multiply(int buffer) {
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) {
      uint32_t w[4];
      if constexpr (Tile::kIsF8) {
        e4m3_to_bf16(w_[buffer][i / 2][i % 2 * 2], w[0], w[2]);
        e4m3_to_bf16(w_[buffer][i / 2][i % 2 * 2 + 1], w[1], w[3]);
      } else {
#pragma unroll
        for (int r = 0; r < 4; ++r) w[r] = w_[buffer][i][r];
      }
#pragma unroll
      for (int j = 0; j < Tile::kTilesT; ++j) {
        multiply_add(sum_[i][j], w, x_[buffer][j][0], x_[buffer][j][1]);
      }
    }
  }

  // ---- scales ---------------------------------------------------------------------------------
  /// A scale as the sums use it: never so small that a ratio of two overflows. What a block of
  /// such weights adds is below 1e-13 of its x.
  __device__ static float usable_scale(float scale) {
    return copysignf(fmaxf(fabsf(scale), 0x1p-60F), scale);
  }

  [[nodiscard]] __device__ float scale_at(int half, int k_step) const {
    return usable_scale(__ldg(scale_row_[half] + k_step * Tile::kStepK / 128));
  }

  /// At the first k step of a scale block: the sums so far in units of the new scale.
  __device__ void rescale() {
    constexpr int kStepsPerBlock = 128 / Tile::kStepK;
    if (compute_.k % kStepsPerBlock != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = scale_at(half, compute_.k);
      const float ratio = __fdividef(scale_[half], scale);
      scale_[half] = scale;
      scale_sums(half, ratio);
    }
  }

  __device__ void scale_sums(int half, float factor) {
#pragma unroll
    for (int i = 0; i < Tile::kTilesF / 2; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kTilesT; ++j) {
#pragma unroll
        for (float& value : sum_[half * (Tile::kTilesF / 2) + i][j]) value *= factor;
      }
    }
  }

  // ---- one tile's sums ------------------------------------------------------------------------
  __device__ void begin_sum() {
#pragma unroll
    for (int i = 0; i < Tile::kTilesF; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kTilesT; ++j) {
#pragma unroll
        for (float& value : sum_[i][j]) value = 0.0F;
      }
    }
    if constexpr (Tile::kIsF8) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = min(first_feature(half), p_.out_features - 1) / 128;
        scale_row_[half] = p_.scales[is_pair_ ? half : 0] + row * p_.scale_stride;
        scale_[half] = scale_at(half, compute_.k);
      }
    }
  }

  /// First feature of a half of this warp's rows of W. Of a pair, both halves are the same ones.
  [[nodiscard]] __device__ int first_feature(int half) const {
    int token_tile, feature_tile;
    tile_position(p_, compute_.tile, token_tile, feature_tile);
    return is_pair_ ? feature_tile * (Tile::kFeatures / 2) + warp_feature_ * kHalf
                    : feature_tile * Tile::kFeatures + warp_feature_ * Tile::kWarpFeatures +
                          half * kHalf;
  }

  __device__ void finish_sum() {
    if (load_.done()) let_next_kernel_start();  // what is left is this tile's store
    if constexpr (Tile::kIsF8) {
      scale_sums(0, scale_[0]);
      scale_sums(1, scale_[1]);
    }
    const bool whole = compute_.k_begin == 0 && compute_.k_end == p_.k_steps;
    if (whole || add_parts()) store();
  }

  /// Leaves this block's part of a shared tile in the workspace; true in the block that finishes
  /// last, which then holds the whole sums.
  __device__ bool add_parts() {
    const int shared_tile = compute_.tile - p_.full_waves * static_cast<int>(gridDim.x);
    const auto blocks = static_cast<uint32_t>(p_.shared_blocks);
    const auto units = static_cast<uint32_t>(p_.shared_units);
    const auto first_unit = static_cast<uint32_t>(shared_tile * p_.k_steps);
    // Block b starts at unit b * units / blocks (rounded down): who holds the first and last one.
    const int first = static_cast<int>(((first_unit + 1) * blocks - 1) / units);
    const int last = static_cast<int>(((first_unit + p_.k_steps) * blocks - 1) / units);
    float4* mine = part(static_cast<int>(blockIdx.x), first);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const float(&s)[4] = vector(v);
      __stcg(mine + v * Tile::kThreads, make_float4(s[0], s[1], s[2], s[3]));
    }
    __shared__ int is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = atomicAdd(p_.counters + shared_tile, 1) == last - first ? 1 : 0;
      if (is_last != 0) p_.counters[shared_tile] = 0;
    }
    __syncthreads();
    if (is_last == 0) return false;
    __threadfence();
    sum_parts(first, last);
    return true;
  }

  /// A block has at most one part that begins its tile and one that does not.
  [[nodiscard]] __device__ float4* part(int block, int first) const {
    const int64_t slot = 2 * block + (block == first ? 0 : 1);
    return p_.parts + slot * kVectors * Tile::kThreads + threadIdx.x;
  }

  // The compiler makes the k loop of 128x256 tiles 3 to 5 % slower where this is unrolled over all
  // vectors.
  __device__ void sum_parts(int first, int last) {
    constexpr int kBatch = kVectors < 8 ? kVectors : 8;
    // Each round drops the first kBatch vectors of this block's own part and appends the totals:
    // after the last round every total is in its place.
#pragma unroll 1
    for (int round = 0; round < kVectors / kBatch; ++round) {
      float4 total[kBatch] = {};
#pragma unroll 1
      for (int block = first; block <= last; ++block) {
        const float4* from = part(block, first) + round * kBatch * Tile::kThreads;
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const float4 value = __ldcg(from + b * Tile::kThreads);
          total[b].x += value.x, total[b].y += value.y;
          total[b].z += value.z, total[b].w += value.w;
        }
      }
#pragma unroll
      for (int v = 0; v < kVectors - kBatch; ++v) {
#pragma unroll
        for (int c = 0; c < 4; ++c) vector(v)[c] = vector(v + kBatch)[c];
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        float(&s)[4] = vector(kVectors - kBatch + b);
        s[0] = total[b].x, s[1] = total[b].y, s[2] = total[b].z, s[3] = total[b].w;
      }
    }
  }

  [[nodiscard]] __device__ float (&vector(int v))[4] {
    return sum_[v / Tile::kTilesT][v % Tile::kTilesT];
  }

  // ---- registers to global --------------------------------------------------------------------
  __device__ void store() {
    int token_tile, feature_tile;
    tile_position(p_, compute_.tile, token_tile, feature_tile);
    int row = token_tile * Tile::kTokens + warp_token_ * Tile::kWarpTokens + lane_ % 4 * 2;
    int feature[2];
    float4 bias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      feature[half] = first_feature(half) + 4 * (lane_ / 4);
      const bool has_bias = p_.bias != nullptr && feature[half] < p_.out_features;
      bias[half] = has_bias ? __ldg(reinterpret_cast<const float4*>(p_.bias + feature[half]))
                            : make_float4(0, 0, 0, 0);
    }
    const bool is_rotated =
        !Tile::kIsF8 && p_.op == GemmOp::rotate && feature[0] < p_.rotated_features;
    // The sums move down by kAtOnce tiles after each round, so that one copy of the code serves
    // all.
    constexpr int kAtOnce = Tile::kTilesT < 2 ? 1 : 2;
#pragma unroll 1
    for (int round = 0; round < Tile::kTilesT / kAtOnce; ++round) {
      if (is_pair_) {
        store_pairs<kAtOnce>(row, feature[0]);
      } else if (is_rotated) {
        store_rotated<kAtOnce>(row, feature, bias);
      } else {
        store_sums<kAtOnce>(row, feature, bias);
      }
      row += 8 * kAtOnce;
#pragma unroll
      for (int i = 0; i < Tile::kTilesF; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kTilesT - kAtOnce; ++j) {
#pragma unroll
          for (int v = 0; v < 4; ++v) sum_[i][j][v] = sum_[i][j + kAtOnce][v];
        }
      }
    }
  }

  /// The four neighbouring features of one token that this lane holds in a half.
  [[nodiscard]] __device__ float4 four_of(int half, int j, int e) const {
    const int i = 2 * half;
    return make_float4(sum_[i][j][e], sum_[i][j][2 + e], sum_[i + 1][j][e], sum_[i + 1][j][2 + e]);
  }

  template <int kAtOnce>
  __device__ void store_sums(int row, const int (&feature)[2], const float4 (&bias)[2]) {
    // Old values first, so that their loads are under way together.
    float4 old[kAtOnce * 4];
#pragma unroll
    for (int v = 0; v < kAtOnce * 4; ++v) {
      const int token = row + v / 4 * 8 + v / 2 % 2;
      const bool is_read =
          p_.op == GemmOp::add && token < p_.num_rows && feature[v % 2] < p_.out_features;
      old[v] =
          is_read ? load_four(token * p_.out_stride + feature[v % 2]) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int v = 0; v < kAtOnce * 4; ++v) {
      const int token = row + v / 4 * 8 + v / 2 % 2;
      float4 value = four_of(v % 2, v / 4, v / 2 % 2);
      value.x += bias[v % 2].x + old[v].x, value.y += bias[v % 2].y + old[v].y;
      value.z += bias[v % 2].z + old[v].z, value.w += bias[v % 2].w + old[v].w;
      if (p_.op == GemmOp::gelu_tanh) {
        value.x = gelu_tanh(value.x), value.y = gelu_tanh(value.y);
        value.z = gelu_tanh(value.z), value.w = gelu_tanh(value.w);
      }
      if (token < p_.num_rows && feature[v % 2] < p_.out_features) {
        store_four(value, token * p_.out_stride + feature[v % 2]);
      }
    }
  }

  /// The first half of the warp's rows is the gate, the second the up product.
  template <int kAtOnce>
  __device__ void store_pairs(int row, int feature) {
#pragma unroll
    for (int v = 0; v < kAtOnce * 2; ++v) {
      const int token = row + v / 2 * 8 + v % 2;
      const float4 gate = four_of(0, v / 2, v % 2);
      const float4 up = four_of(1, v / 2, v % 2);
      if (token < p_.num_rows && feature < p_.out_features) {
        store_four(make_float4(silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z,
                               silu(gate.w) * up.w),
                   token * p_.out_stride + feature);
      }
    }
  }

  /// The halves of the warp's rows are the halves of one head. Sums are rounded first, as they
  /// would be between a product and a rotation.
  template <int kAtOnce>
  __device__ void store_rotated(int row, const int (&feature)[2], const float4 (&bias)[2]) {
    static_assert(Tile::kWarpFeatures == kRotatedHeadDim);
    float4 cosine[kAtOnce * 2];
    float4 sine[kAtOnce * 2];
#pragma unroll
    for (int v = 0; v < kAtOnce * 2; ++v) {
      const int token = min(row + v / 2 * 8 + v % 2, p_.num_rows - 1);
      const int angle = token * kHalf + feature[0] % Tile::kWarpFeatures;
      cosine[v] = __ldg(reinterpret_cast<const float4*>(p_.cosines + angle));
      sine[v] = __ldg(reinterpret_cast<const float4*>(p_.sines + angle));
    }
#pragma unroll
    for (int v = 0; v < kAtOnce * 2; ++v) {
      const int token = row + v / 2 * 8 + v % 2;
      const float4 a = rounded(four_of(0, v / 2, v % 2), bias[0]);
      const float4 b = rounded(four_of(1, v / 2, v % 2), bias[1]);
      const float4 c = cosine[v];
      const float4 s = sine[v];
      if (token < p_.num_rows) {
        const int64_t offset = token * p_.out_stride;
        store_four(
            make_float4(rotated_first(a.x, b.x, c.x, s.x), rotated_first(a.y, b.y, c.y, s.y),
                        rotated_first(a.z, b.z, c.z, s.z), rotated_first(a.w, b.w, c.w, s.w)),
            offset + feature[0]);
        store_four(
            make_float4(rotated_second(a.x, b.x, c.x, s.x), rotated_second(a.y, b.y, c.y, s.y),
                        rotated_second(a.z, b.z, c.z, s.z), rotated_second(a.w, b.w, c.w, s.w)),
            offset + feature[1]);
      }
    }
  }

  /// Sum and bias as bf16 holds them.
  [[nodiscard]] __device__ static float4 rounded(float4 sum, float4 bias) {
    const float2 first = unpack_bf16(pack_bf16(sum.x + bias.x, sum.y + bias.y));
    const float2 second = unpack_bf16(pack_bf16(sum.z + bias.z, sum.w + bias.w));
    return make_float4(first.x, first.y, second.x, second.y);
  }

  [[nodiscard]] __device__ float4 load_four(int64_t offset) const {
    if (p_.out_is_f32) {
      return *reinterpret_cast<const float4*>(static_cast<const float*>(p_.out) + offset);
    }
    const uint2 bits =
        *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(p_.out) + offset);
    const float2 first = unpack_bf16(bits.x);
    const float2 second = unpack_bf16(bits.y);
    return make_float4(first.x, first.y, second.x, second.y);
  }

  __device__ void store_four(float4 value, int64_t offset) {
    if (p_.out_is_f32) {
      *reinterpret_cast<float4*>(static_cast<float*>(p_.out) + offset) = value;
    } else {
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(p_.out) + offset) =
          make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w));
    }
  }

  static constexpr int kLoadsW = Tile::kIsF8 ? Tile::kTilesF / 2 : Tile::kTilesF;
  static constexpr int kVectors = Tile::kTilesF * Tile::kTilesT;

  const GemmParameters& p_;
  const uint32_t shared_;
  const int lane_, warp_feature_, warp_token_;
  const bool is_pair_;
  const uint32_t lane_x_, lane_w_;  // this lane's first row at step 0, in a stage
  const uint32_t copy_x_, copy_w_;  // this thread's first copy, in a stage; with pointers only
  GemmCursor load_, compute_;
  // This thread's chunks at the next step to be copied.
  RowAddresses<kPassesX, Tile::kKeepsPointers> from_x_;
  RowAddresses<kPassesW, Tile::kKeepsPointers> from_w_;
  int columns_left_;
  const float* scale_row_[2];
  float scale_[2];
  float sum_[Tile::kTilesF][Tile::kTilesT][4];
  uint32_t x_[2][Tile::kTilesT][2];
  uint32_t w_[2][kLoadsW][4];
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResidentBlocks)
    gemm(const __grid_constant__ GemmParameters parameters) {
  wait_for_earlier_kernels();
  extern __shared__ __align__(128) uint8_t shared[];
  GemmBlock<Tile> block(parameters, shared_address(shared));
  block.run();
}

}  // namespace glimpse::cuda
