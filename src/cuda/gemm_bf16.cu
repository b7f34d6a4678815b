// The tensor-core products with weights stored as bf16.
#include "cuda/gemm_tiles.cuh"

namespace glimpse::cuda {

cudaError_t prepare_gemm_bf16() {
  return prepare_gemm_tiles<false>();
}

cudaError_t launch_gemm_bf16(GemmTile tile, const GemmParameters& parameters, int num_blocks,
                             const LaunchStream& stream) {
  return launch_gemm_tiles<false>(tile, parameters, num_blocks, stream);
}

}  // namespace glimpse::cuda
