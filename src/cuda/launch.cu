// What the kernels of this program were compiled for: all of them alike, so one tells.
#include "cuda/launch.cuh"

namespace glimpse::cuda {
namespace {

__global__ void wait_and_end() {
  wait_for_earlier_kernels();
}

}  // namespace

bool kernels_can_wait() {
  constexpr int kFirstThatWaits = 90;
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, wait_and_end) == cudaSuccess &&
         attributes.ptxVersion >= kFirstThatWaits;
}

}  // namespace glimpse::cuda
