// The tensor-core products with weights stored as e4m3.
#include "cuda/gemm_tiles.cuh"

namespace glimpse::cuda {

cudaError_t prepare_gemm_f8() {
  return prepare_gemm_tiles<true>();
}

cudaError_t launch_gemm_f8(GemmTile tile, const GemmParameters& parameters, int num_blocks,
                           const LaunchStream& stream) {
  return launch_gemm_tiles<true>(tile, parameters, num_blocks, stream);
}

}  // namespace glimpse::cuda
