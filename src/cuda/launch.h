// Where kernels are launched, and whether one may be brought up while the one before it still runs:
// then its blocks are in place, with their addresses worked out, when the results it reads are
// there. Every kernel so launched waits for all earlier work itself (launch.cuh).
#pragma once

#include <cuda_runtime_api.h>

namespace glimpse::cuda {

/// A stream, and what the card lets kernels on it do. Made from the stream alone, kernels start one
/// after the other.
struct LaunchStream {
  cudaStream_t stream = nullptr;
  bool overlaps = false;

  LaunchStream(cudaStream_t plain) : stream(plain) {}  // any launcher may be given a bare stream
  LaunchStream(cudaStream_t shared, bool may_overlap) : stream(shared), overlaps(may_overlap) {}
};

/// Whether the kernels in this program were compiled with the instruction that waits (sm_90 and
/// later): on such a card they may still be translated from an older architecture's code.
[[nodiscard]] bool kernels_can_wait();

}  // namespace glimpse::cuda
