// The kernel of gemm_w8a8.h. As in gemm_kernel.cuh it computes out^T = W x^T: W is the 16-row
// operand, x the 8-column one, and the rows of W are taken in an order that leaves a lane with
// neighbouring features of a token. A step of k is one scale block, 128 bytes of every row. Its
// products are summed on their own, multiplied by both scales and added to the sums in f32: here
// the scale differs from token to token, and a sum of 128 is also as long as the FP8 units of some
// cards, which keep few bits between additions, should be trusted.
#include "cuda/gemm_w8a8.h"
#include "cuda/tensor_core.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kBlockK = 128;  // columns of a scale block, and bytes of a row in shared memory

struct W8A8Parameters {
  const uint8_t* codes;
  int64_t codes_stride;
  const float* x_scales;
  int64_t x_scale_stride;
  const uint8_t* weight[2];
  const float* scales[2];
  const float* bias;
  void* out;
  int64_t out_stride;
  int num_rows, out_features, in_features, k_blocks;
  GemmOp op;
  bool out_is_f32;
};

template <int kTokenCount, int kFeatureCount, int kTokenWarps, int kFeatureWarps, int kStageCount,
          int kBlocks>
struct W8A8TileConfig {
  static constexpr int kTokens = kTokenCount;
  static constexpr int kFeatures = kFeatureCount;
  static constexpr int kWarpsAlongTokens = kTokenWarps;
  static constexpr int kStages = kStageCount;
  static constexpr int kBlocksPerMultiprocessor = kBlocks;
  static constexpr int kThreads = 32 * kTokenWarps * kFeatureWarps;
  static constexpr int kWarpTokens = kTokens / kTokenWarps;
  static constexpr int kWarpFeatures = kFeatures / kFeatureWarps;
  static constexpr int kHalf = kWarpFeatures / 2;  // of a gate and up pair: the gate's rows
  static constexpr int kTilesF = kWarpFeatures / 16;
  static constexpr int kTilesT = kWarpTokens / 8;
  static constexpr int kBytesW = kFeatures * kBlockK;
  static constexpr int kStageBytes = kBytesW + kTokens * kBlockK;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kTilesF % 2 == 0 && kTilesT % 2 == 0 && kBlockK % kFeatures == 0);
  static_assert(kSharedBytes <= 99 * 1024, "sm_86, 89 and 120 have 99 KiB a block");
};

/// sum[16, 8] += a[16, 32] b[32, 8] of e4m3, for which cards before sm_89 have no instruction: they
/// widen to bf16, exactly. Any order of k serves as long as a and b agree.
__device__ __forceinline__ void multiply_add_e4m3(float (&sum)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
  uint32_t wide_a[4];
  uint32_t wide_b[2];
  e4m3_to_bf16(a[0], wide_a[0], wide_a[2]);
  e4m3_to_bf16(a[1], wide_a[1], wide_a[3]);
  e4m3_to_bf16(b0, wide_b[0], wide_b[1]);
  multiply_add(sum, wide_a, wide_b[0], wide_b[1]);
  e4m3_to_bf16(a[2], wide_a[0], wide_a[2]);
  e4m3_to_bf16(a[3], wide_a[1], wide_a[3]);
  e4m3_to_bf16(b1, wide_b[0], wide_b[1]);
  multiply_add(sum, wide_a, wide_b[0], wide_b[1]);
#else
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

template <typename Tile>
class W8A8Block {
 public:
  __device__ W8A8Block(const W8A8Parameters& parameters, uint32_t shared)
      : p_(parameters),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x % 32)),
        warp_feature_(static_cast<int>(threadIdx.x / 32) / Tile::kWarpsAlongTokens),
        warp_token_(static_cast<int>(threadIdx.x / 32) % Tile::kWarpsAlongTokens),
        is_pair_(parameters.op == GemmOp::silu_mul),
        first_feature_(static_cast<int>(blockIdx.y) * (Tile::kFeatures / (is_pair_ ? 2 : 1))),
        first_token_(static_cast<int>(blockIdx.x) * Tile::kTokens) {
    find_rows();
  }

  __device__ void run() {
#pragma unroll
    for (int stage = 0; stage < Tile::kStages - 1; ++stage) issue_copies(stage, stage);
    int stage = 0;
    for (int block = 0; block < p_.k_blocks; ++block) {
      copy_async_wait<Tile::kStages - 2>();
      __syncthreads();  // this stage is complete, and the one before it is no longer read
      const int ahead = stage == 0 ? Tile::kStages - 1 : stage - 1;
      issue_copies(block + Tile::kStages - 1, ahead);
      add_block(block, stage);
      stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    }
    copy_async_wait<0>();
    store();
  }

 private:
  static constexpr int kRowsPerPass = Tile::kThreads / 8;  // 8 chunks of 16 bytes a row
  static constexpr int kPassesW = Tile::kFeatures / kRowsPerPass;
  static constexpr int kPassesX = Tile::kTokens / kRowsPerPass;

  // ---- global to shared -----------------------------------------------------------------------
  // Rows that ldmatrix reads together, neighbours of x and every kTilesF-th of W, must differ in
  // the place of a chunk.
  __device__ static int position_w(int row, int chunk) {
    return row * kBlockK + (chunk ^ (row / Tile::kTilesF & 7)) * 16;
  }
  __device__ static int position_x(int row, int chunk) {
    return Tile::kBytesW + row * kBlockK + (chunk ^ (row & 7)) * 16;
  }

  /// Where this thread's chunks come from. Rows beyond the end repeat the last one: what they add
  /// is never stored.
  __device__ void find_rows() {
    const int row = static_cast<int>(threadIdx.x) / 8;
    const int column = static_cast<int>(threadIdx.x) % 8 * 16;
#pragma unroll
    for (int pass = 0; pass < kPassesW; ++pass) {
      const int in_tile = row + pass * kRowsPerPass;
      const int in_warp = in_tile % Tile::kWarpFeatures;
      const int up = is_pair_ && in_warp >= Tile::kHalf ? 1 : 0;
      const int feature = is_pair_ ? first_feature_ + in_tile / Tile::kWarpFeatures * Tile::kHalf +
                                         in_warp % Tile::kHalf
                                   : first_feature_ + in_tile;
      from_w_[pass] =
          p_.weight[up] + int64_t{min(feature, p_.out_features - 1)} * p_.in_features + column;
    }
#pragma unroll
    for (int pass = 0; pass < kPassesX; ++pass) {
      const int token = min(first_token_ + row + pass * kRowsPerPass, p_.num_rows - 1);
      from_x_[pass] = p_.codes + token * p_.codes_stride + column;
    }
  }

  /// Columns beyond the last are zeros in both. Also where there is no such block: groups of copies
  /// are counted.
  __device__ void issue_copies(int block, int stage) {
    if (block < p_.k_blocks) {
      const uint32_t to = shared_ + stage * Tile::kStageBytes;
      const int row = static_cast<int>(threadIdx.x) / 8;
      const int chunk = static_cast<int>(threadIdx.x) % 8;
      const int column = block * kBlockK;
      const bool is_valid = column + chunk * 16 < p_.in_features;
#pragma unroll
      for (int pass = 0; pass < kPassesW; ++pass) {
        copy_async(to + position_w(row + pass * kRowsPerPass, chunk), from_w_[pass] + column,
                   is_valid);
      }
#pragma unroll
      for (int pass = 0; pass < kPassesX; ++pass) {
        copy_async(to + position_x(row + pass * kRowsPerPass, chunk), from_x_[pass] + column,
                   is_valid);
      }
    }
    copy_async_commit();
  }

  // ---- products -------------------------------------------------------------------------------
  /// sum_ += products of one scale block times the scales of x and W.
  __device__ void add_block(int block, int stage) {
    float2 x_scale[Tile::kTilesT];
#pragma unroll
    for (int j = 0; j < Tile::kTilesT; ++j) {
      const int token = token_of(j);
      const float* from = p_.x_scales + block * p_.x_scale_stride + token;
      x_scale[j] =
          token < p_.num_rows ? __ldg(reinterpret_cast<const float2*>(from)) : make_float2(0, 0);
    }
    const int scale_at = first_feature_ / kBlockK * p_.k_blocks + block;
    const float w_scale[2] = {__ldg(p_.scales[0] + scale_at),
                              __ldg(p_.scales[is_pair_ ? 1 : 0] + scale_at)};
    float products[Tile::kTilesF][Tile::kTilesT][4] = {};
    const uint32_t tile = shared_ + stage * Tile::kStageBytes;
#pragma unroll
    for (int step = 0; step < kBlockK / 32; ++step) multiply(tile, step, products);
#pragma unroll
    for (int i = 0; i < Tile::kTilesF; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kTilesT; ++j) {
        const float scale = w_scale[i / (Tile::kTilesF / 2)];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const float of_x = v % 2 == 0 ? x_scale[j].x : x_scale[j].y;
          sum_[i][j][v] = fmaf(products[i][j][v], of_x * scale, sum_[i][j][v]);
        }
      }
    }
  }

  /// 32 columns. Lanes 8m .. 8m + 7 name the rows of matrix m of an ldmatrix: of W the lower and
  /// the upper 8 rows of a tile, then the same 16 columns on; of x 8 tokens, the same 16 columns
  /// on, then the next 8 tokens.
  __device__ void multiply(uint32_t tile, int step,
                           float (&products)[Tile::kTilesF][Tile::kTilesT][4]) {
    const int matrix = lane_ / 8;
    uint32_t x[Tile::kTilesT][2];
#pragma unroll
    for (int j = 0; j < Tile::kTilesT; j += 2) {
      const int row = warp_token_ * Tile::kWarpTokens + (j + matrix / 2) * 8 + lane_ % 8;
      uint32_t both[4];
      load_matrix_x4(both, tile + position_x(row, step * 2 + matrix % 2));
      x[j][0] = both[0], x[j][1] = both[1];
      x[j + 1][0] = both[2], x[j + 1][1] = both[3];
    }
#pragma unroll
    for (int i = 0; i < Tile::kTilesF; ++i) {
      const int row = warp_feature_ * Tile::kWarpFeatures + row_in_warp(i, lane_ % 8) + matrix % 2;
      uint32_t w[4];
      load_matrix_x4(w, tile + position_w(row, step * 2 + matrix / 2));
#pragma unroll
      for (int j = 0; j < Tile::kTilesT; ++j) {
        multiply_add_e4m3(products[i][j], w, x[j][0], x[j][1]);
      }
    }
  }

  /// The warp's row of W that is row g of tile i; the next one is its row g + 8. So a lane holds
  /// kTilesF neighbouring features in each half.
  [[nodiscard]] __device__ static int row_in_warp(int i, int g) {
    constexpr int kTilesOfHalf = Tile::kTilesF / 2;
    return i / kTilesOfHalf * Tile::kHalf + g * Tile::kTilesF + 2 * (i % kTilesOfHalf);
  }

  // ---- registers to global --------------------------------------------------------------------
  /// The first of the two tokens that this lane has in token tile j.
  [[nodiscard]] __device__ int token_of(int j) const {
    return first_token_ + warp_token_ * Tile::kWarpTokens + j * 8 + lane_ % 4 * 2;
  }

  static constexpr int kRun = Tile::kTilesF;  // neighbouring features of a lane
  using Run = float[kRun];

  __device__ void take_run(int half, int j, int e, Run& run) const {
#pragma unroll
    for (int c = 0; c < kRun; ++c) {
      run[c] = sum_[half * (Tile::kTilesF / 2) + c / 2][j][c % 2 * 2 + e];
    }
  }

  __device__ void store() {
    const int rows_of_warp = is_pair_ ? Tile::kHalf : Tile::kWarpFeatures;
    const int first = first_feature_ + warp_feature_ * rows_of_warp + lane_ / 4 * kRun;
#pragma unroll
    for (int j = 0; j < Tile::kTilesT; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = token_of(j) + e;
        if (token >= p_.num_rows) continue;
        Run low;
        Run high;
        take_run(0, j, e, low);
        take_run(1, j, e, high);
        if (is_pair_) {
#pragma unroll
          for (int c = 0; c < kRun; ++c) low[c] = silu(low[c]) * high[c];
        }
        store_run(low, token, first);
        if (!is_pair_) store_run(high, token, first + Tile::kHalf);
      }
    }
  }

  __device__ void store_run(Run& run, int token, int feature) {
    if (feature >= p_.out_features) return;
    const int64_t offset = token * p_.out_stride + feature;
#pragma unroll
    for (int c = 0; c < kRun; ++c) {
      if (p_.bias != nullptr) run[c] += __ldg(p_.bias + feature + c);
    }
    if (p_.out_is_f32) {
      auto* out = reinterpret_cast<float2*>(static_cast<float*>(p_.out) + offset);
#pragma unroll
      for (int c = 0; c < kRun; c += 2) {
        const float2 old = p_.op == GemmOp::add ? out[c / 2] : make_float2(0, 0);
        out[c / 2] = make_float2(run[c] + old.x, run[c + 1] + old.y);
      }
    } else {
      auto* out = reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p_.out) + offset);
#pragma unroll
      for (int c = 0; c < kRun; c += 2) {
        const float2 old = p_.op == GemmOp::add ? unpack_bf16(out[c / 2]) : make_float2(0, 0);
        out[c / 2] = pack_bf16(run[c] + old.x, run[c + 1] + old.y);
      }
    }
  }

  const W8A8Parameters& p_;
  const uint32_t shared_;
  const int lane_, warp_feature_, warp_token_;
  const bool is_pair_;
  const int first_feature_, first_token_;
  const uint8_t* from_w_[kPassesW];
  const uint8_t* from_x_[kPassesX];
  float sum_[Tile::kTilesF][Tile::kTilesT][4] = {};
};

// A block per tile of out; blocks of neighbouring tokens read the same weights. Moves the codes of
// its rows of x and W once, and its part of out.
// spill: on sm_90 alone, which has no such product: ptxas widens the operands of the largest tile
// and runs out of registers by four.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerMultiprocessor)
    gemm_w8a8(const __grid_constant__ W8A8Parameters parameters) {
  extern __shared__ __align__(128) uint8_t shared[];
  W8A8Block<Tile> block(parameters, shared_address(shared));
  block.run();
}

// The numbers are those of w8a8_tile_shape(). One warp serves up to 16 tokens: what counts there is
// that many blocks have weights under way.
using W8A8TileT16F32 = W8A8TileConfig<16, 32, 1, 1, 4, 4>;
using W8A8TileT64F64 = W8A8TileConfig<64, 64, 2, 2, 3, 2>;
using W8A8TileT128F128 = W8A8TileConfig<128, 128, 4, 2, 3, 1>;

template <typename Tile>
cudaError_t prepare_tile() {
  return cudaFuncSetAttribute(gemm_w8a8<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Tile::kSharedBytes);
}

template <typename Tile>
cudaError_t launch_tile(const W8A8Parameters& parameters, cudaStream_t stream) {
  const int features = parameters.op == GemmOp::silu_mul ? Tile::kFeatures / 2 : Tile::kFeatures;
  const dim3 grid(static_cast<unsigned>((parameters.num_rows + Tile::kTokens - 1) / Tile::kTokens),
                  static_cast<unsigned>((parameters.out_features + features - 1) / features));
  gemm_w8a8<Tile><<<grid, Tile::kThreads, Tile::kSharedBytes, stream>>>(parameters);
  return cudaGetLastError();
}

}  // namespace

cudaError_t prepare_w8a8() {
  cudaError_t error = prepare_tile<W8A8TileT16F32>();
  if (error == cudaSuccess) error = prepare_tile<W8A8TileT64F64>();
  if (error == cudaSuccess) error = prepare_tile<W8A8TileT128F128>();
  return error;
}

cudaError_t launch_w8a8(const W8A8Arguments& arguments, W8A8Tile tile, cudaStream_t stream) {
  if (arguments.num_rows == 0 || arguments.out_features == 0) return cudaSuccess;
  W8A8Parameters p{};
  p.codes = static_cast<const uint8_t*>(arguments.codes);
  p.codes_stride = arguments.codes_stride;
  p.x_scales = arguments.x_scales;
  p.x_scale_stride = arguments.x_scale_stride;
  p.weight[0] = static_cast<const uint8_t*>(arguments.weight);
  p.weight[1] = static_cast<const uint8_t*>(arguments.weight_up);
  p.scales[0] = arguments.scales;
  p.scales[1] = arguments.scales_up;
  p.bias = arguments.bias;
  p.out = arguments.out;
  p.out_stride = arguments.out_stride;
  p.num_rows = static_cast<int>(arguments.num_rows);
  p.out_features = static_cast<int>(arguments.out_features);
  p.in_features = static_cast<int>(arguments.in_features);
  p.k_blocks = (p.in_features + kBlockK - 1) / kBlockK;
  p.op = arguments.op;
  p.out_is_f32 = arguments.out_is_f32;
  switch (tile) {
    case W8A8Tile::t16f32:
      return launch_tile<W8A8TileT16F32>(p, stream);
    case W8A8Tile::t64f64:
      return launch_tile<W8A8TileT64F64>(p, stream);
    case W8A8Tile::t128f128:
      return launch_tile<W8A8TileT128F128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace glimpse::cuda
