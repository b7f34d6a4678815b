// Turns arguments and a plan into the parameters of a launch.
#include "cuda/gemm.h"
#include "cuda/gemm_tiles.cuh"

namespace glimpse::cuda {

cudaError_t prepare_gemm() {
  const cudaError_t error = prepare_gemm_bf16();
  return error == cudaSuccess ? prepare_gemm_f8() : error;
}

cudaError_t launch_gemm(const GemmArguments& arguments, const GemmPlan& plan,
                        const LaunchStream& stream) {
  if (arguments.num_rows == 0 || arguments.out_features == 0) return cudaSuccess;
  GemmParameters p{};
  p.x = static_cast<const __nv_bfloat16*>(arguments.x);
  p.x_stride = arguments.x_stride;
  p.weight[0] = static_cast<const uint8_t*>(arguments.weight);
  p.weight[1] = static_cast<const uint8_t*>(arguments.weight_up);
  p.scales[0] = arguments.scales;
  p.scales[1] = arguments.scales_up;
  p.bias = arguments.bias;
  p.cosines = arguments.cosines;
  p.sines = arguments.sines;
  p.rotated_features = static_cast<int>(arguments.rotated_features);
  p.out = arguments.out;
  p.out_stride = arguments.out_stride;
  p.num_rows = static_cast<int>(arguments.num_rows);
  p.out_features = static_cast<int>(arguments.out_features);
  p.in_features = static_cast<int>(arguments.in_features);
  p.scale_stride = (p.in_features + 127) / 128;
  p.op = arguments.op;
  p.out_is_f32 = arguments.out_is_f32;
  p.token_tiles = plan.token_tiles;
  p.feature_tiles = plan.feature_tiles;
  p.k_steps = plan.k_steps;
  p.full_waves = plan.full_waves;
  p.num_tiles = plan.token_tiles * plan.feature_tiles;
  p.shared_blocks = plan.shared_blocks;
  const int shared_tiles = p.num_tiles - plan.full_waves * plan.num_blocks;
  p.shared_units = shared_tiles > 0 ? shared_tiles * plan.k_steps : 0;
  p.counters = static_cast<int*>(arguments.workspace);
  p.parts =
      reinterpret_cast<float4*>(static_cast<uint8_t*>(arguments.workspace) + kGemmCounterBytes);
  return arguments.weight_is_f8 ? launch_gemm_f8(plan.tile, p, plan.num_blocks, stream)
                                : launch_gemm_bf16(plan.tile, p, plan.num_blocks, stream);
}

}  // namespace glimpse::cuda
