// Pixels to patches: each thread writes a pack of neighbours of one row of one patch, so that
// writes are whole and the strided bytes come from the cache.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kThreads = 256;

struct Picture {
  const uint8_t* pixels;
  const float* table;
  uint32_t num_frames, height, width;
  uint32_t side, merge, frames, first;
};

template <typename Out, int kPack>
__global__ void __launch_bounds__(kThreads)
    cut_patches(Picture picture, DeviceRows<Out> out, uint32_t packs_per_patch,
                uint32_t num_packs) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_packs) return;
  const uint32_t row = index / packs_per_patch;
  const uint32_t column = index % packs_per_patch * kPack;
  const uint32_t side = picture.side;
  const uint32_t x = column % side;
  const uint32_t y = column / side % side;
  const uint32_t t = column / (side * side) % picture.frames;
  const uint32_t channel = column / (side * side * picture.frames);

  const uint32_t area = picture.merge * picture.merge;
  const uint32_t blocks_per_row = picture.width / (side * picture.merge);
  const uint32_t per_slice = picture.height / side * (picture.width / side);
  const uint32_t slice = (picture.first + row) / per_slice;
  const uint32_t patch = (picture.first + row) % per_slice;
  const uint32_t block = patch / area;
  const uint32_t patch_row = block / blocks_per_row * picture.merge + patch % area / picture.merge;
  const uint32_t patch_column = block % blocks_per_row * picture.merge + patch % picture.merge;
  const uint32_t frame = min(slice * picture.frames + t, picture.num_frames - 1);
  const int64_t line = int64_t{frame} * picture.height + patch_row * side + y;
  const uint8_t* from =
      picture.pixels + (line * picture.width + patch_column * side + x) * 3 + channel;
  const float* values = picture.table + channel * 256;
  float pack[kPack];
#pragma unroll
  for (int i = 0; i < kPack; ++i) pack[i] = values[from[3 * i]];
  store(pack, out.row(row) + column);
}

template <typename Out, int kPack>
cudaError_t launch(const PatchArguments& a, const LaunchStream& stream) {
  const int64_t packs_per_patch = 3 * a.frames * a.side * a.side / kPack;
  const int64_t packs = a.count * packs_per_patch;
  if (packs > UINT32_MAX - kThreads || a.first + a.count > UINT32_MAX) return cudaErrorInvalidValue;
  const Picture picture = {.pixels = a.pixels,
                           .table = a.table,
                           .num_frames = static_cast<uint32_t>(a.num_frames),
                           .height = static_cast<uint32_t>(a.height),
                           .width = static_cast<uint32_t>(a.width),
                           .side = static_cast<uint32_t>(a.side),
                           .merge = static_cast<uint32_t>(a.merge),
                           .frames = static_cast<uint32_t>(a.frames),
                           .first = static_cast<uint32_t>(a.first)};
  return launch_kernel(cut_patches<Out, kPack>, {divide_up(packs, kThreads), kThreads}, stream,
                       picture, DeviceRows<Out>(a.out), static_cast<uint32_t>(packs_per_patch),
                       static_cast<uint32_t>(packs));
}

}  // namespace

cudaError_t launch_cut_patches(const PatchArguments& a, const LaunchStream& stream) {
  if (a.count == 0) return cudaSuccess;
  // A pack stays within one row of a patch.
  const bool packs = a.side % 8 == 0 && allow_packs({a.out}, a.side, 8);
  return dispatch_activation(a.out.element, [&]<typename Out>() {
    return packs ? launch<Out, 8>(a, stream) : launch<Out, 1>(a, stream);
  });
}

}  // namespace glimpse::cuda
