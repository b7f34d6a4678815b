// The block tiles of gemm.h as types; the numbers are those of gemm_tile_shape().
#pragma once

#include "cuda/gemm_kernel.cuh"

namespace glimpse::cuda {

// A warp of 64x64 reads 3 (e4m3) or 4 (bf16) KiB of shared memory for 32 products of 16x8x16,
// which leaves the tensor cores the bottleneck; eight of them share an x of 128 rows.
template <bool kF8>
using GemmTileT128F256 = GemmTileConfig<kF8, 128, 256, 2, kF8 ? 64 : 32, kF8 ? 3 : 4, 1,
                                        CopyAddresses::first_and_offsets>;
template <bool kF8>
using GemmTileT128F128 = GemmTileConfig<kF8, 128, 128, 2, kF8 ? 64 : 32, kF8 ? 4 : 6, 2,
                                        CopyAddresses::first_and_offsets>;
// Where tiles of 128 rows fill the last wave badly. Pointers make it 3 to 8 % faster; those of 128
// became up to 9 % slower with them.
template <bool kF8>
using GemmTileT96F128 =
    GemmTileConfig<kF8, 96, 128, 2, 64, kF8 ? 4 : 3, 2,
                   kF8 ? CopyAddresses::first_and_offsets : CopyAddresses::pointers>;
// Few rows: what counts is weight bytes under way, so several blocks share a multiprocessor.
template <bool kF8>
using GemmTileT64F128 =
    GemmTileConfig<kF8, 64, 128, 2, kF8 ? 64 : 32, 4, 3, CopyAddresses::first_and_offsets>;
template <bool kF8>
using GemmTileT32F256 =
    GemmTileConfig<kF8, 32, 256, 1, kF8 ? 64 : 32, 4, 2, CopyAddresses::first_and_offsets>;
template <bool kF8>
using GemmTileT16F256 =
    GemmTileConfig<kF8, 16, 256, 1, kF8 ? 64 : 32, 5, 2, CopyAddresses::first_and_offsets>;

template <typename Tile>
cudaError_t prepare_gemm_tile() {
  return cudaFuncSetAttribute(gemm<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Tile::kSharedBytes);
}

template <typename Tile>
cudaError_t launch_gemm_tile(const GemmParameters& parameters, int num_blocks,
                             const LaunchStream& stream) {
  return launch_kernel(gemm<Tile>,
                       {static_cast<unsigned>(num_blocks), Tile::kThreads, Tile::kSharedBytes},
                       stream, parameters);
}

template <bool kF8>
cudaError_t prepare_gemm_tiles() {
  cudaError_t error = prepare_gemm_tile<GemmTileT16F256<kF8>>();
  if (error == cudaSuccess) error = prepare_gemm_tile<GemmTileT32F256<kF8>>();
  if (error == cudaSuccess) error = prepare_gemm_tile<GemmTileT64F128<kF8>>();
  if (error == cudaSuccess) error = prepare_gemm_tile<GemmTileT96F128<kF8>>();
  if (error == cudaSuccess) error = prepare_gemm_tile<GemmTileT128F128<kF8>>();
  if (error == cudaSuccess) error = prepare_gemm_tile<GemmTileT128F256<kF8>>();
  return error;
}

template <bool kF8>
cudaError_t launch_gemm_tiles(GemmTile tile, const GemmParameters& parameters, int num_blocks,
                              const LaunchStream& stream) {
  switch (tile) {
    case GemmTile::t16f256:
      return launch_gemm_tile<GemmTileT16F256<kF8>>(parameters, num_blocks, stream);
    case GemmTile::t32f256:
      return launch_gemm_tile<GemmTileT32F256<kF8>>(parameters, num_blocks, stream);
    case GemmTile::t64f128:
      return launch_gemm_tile<GemmTileT64F128<kF8>>(parameters, num_blocks, stream);
    case GemmTile::t96f128:
      return launch_gemm_tile<GemmTileT96F128<kF8>>(parameters, num_blocks, stream);
    case GemmTile::t128f128:
      return launch_gemm_tile<GemmTileT128F128<kF8>>(parameters, num_blocks, stream);
    case GemmTile::t128f256:
      return launch_gemm_tile<GemmTileT128F256<kF8>>(parameters, num_blocks, stream);
  }
  return cudaErrorInvalidValue;
}

// One translation unit each: gemm_bf16.cu and gemm_f8.cu.
cudaError_t prepare_gemm_bf16();
cudaError_t prepare_gemm_f8();
cudaError_t launch_gemm_bf16(GemmTile tile, const GemmParameters& parameters, int num_blocks,
                             const LaunchStream& stream);
cudaError_t launch_gemm_f8(GemmTile tile, const GemmParameters& parameters, int num_blocks,
                           const LaunchStream& stream);

}  // namespace glimpse::cuda
