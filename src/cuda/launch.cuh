// A launch that may overlap the end of the kernel before (launch.h), and the two instructions a
// kernel needs for that.
#pragma once

#include <utility>

#include "cuda/launch.h"

namespace glimpse::cuda {

/// The first statement of every kernel that launch_kernel() starts, in every thread: all earlier
/// kernels are done and what they wrote can be read. No memory may be touched before, not even a
/// weight, since a kernel that did not wait would end before the ones it did not wait for.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Once every block has come here or ended, the next kernel's blocks take the room that is left.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct LaunchShape {
  dim3 blocks;
  unsigned threads = 0;
  int shared_bytes = 0;
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), const LaunchShape& shape,
                          const LaunchStream& stream, Arguments&&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream.stream;
  config.attrs = &overlap;
  config.numAttrs = stream.overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace glimpse::cuda
