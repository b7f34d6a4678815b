// Rows moved by index, and the blend of four table rows. One thread per pack of 8 (or 1) elements.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kThreads = 256;

template <RowMove kMove, typename From, typename Out, int kPack>
__global__ void __launch_bounds__(kThreads)
    move_rows(DeviceRows<From> from, const int32_t* __restrict__ indices, DeviceRows<Out> out,
              uint32_t packs_per_row, uint32_t num_packs) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_packs) return;
  const uint32_t i = index / packs_per_row;
  const uint32_t column = index % packs_per_row * kPack;
  const auto other = static_cast<uint32_t>(indices[i]);
  const From* source = from.row(kMove == RowMove::gather ? other : i) + column;
  Out* target = out.row(kMove == RowMove::gather ? i : other) + column;
  float values[kPack];
  load(source, values);
  if constexpr (kMove == RowMove::add) {
    float sums[kPack];
    load(target, sums);
#pragma unroll
    for (int j = 0; j < kPack; ++j) values[j] += sums[j];
  }
  store(values, target);
}

template <typename Table, typename Out, int kPack>
__global__ void __launch_bounds__(kThreads)
    blend_rows(DeviceRows<Table> table, const int4* __restrict__ indices,
               const float4* __restrict__ weights, DeviceRows<Out> out, uint32_t packs_per_row,
               uint32_t num_packs) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= num_packs) return;
  const uint32_t i = index / packs_per_row;
  const uint32_t column = index % packs_per_row * kPack;
  const int4 corner = indices[i];
  const float4 weight = weights[i];
  const int corners[4] = {corner.x, corner.y, corner.z, corner.w};
  const float factors[4] = {weight.x, weight.y, weight.z, weight.w};
  float sums[kPack] = {};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    float values[kPack];
    load(table.row(static_cast<uint32_t>(corners[c])) + column, values);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sums[j] += factors[c] * values[j];
  }
  Out* target = out.row(i) + column;
  float values[kPack];
  load(target, values);
#pragma unroll
  for (int j = 0; j < kPack; ++j) values[j] += sums[j];
  store(values, target);
}

template <RowMove kMove, typename From, typename Out, int kPack>
cudaError_t launch(const RowMoveArguments& a, const LaunchStream& stream) {
  const int64_t packs = a.count * (a.dim / kPack);
  if (packs > UINT32_MAX - kThreads) return cudaErrorInvalidValue;
  return launch_kernel(move_rows<kMove, From, Out, kPack>, {divide_up(packs, kThreads), kThreads},
                       stream, DeviceRows<From>(a.from), a.indices, DeviceRows<Out>(a.out),
                       static_cast<uint32_t>(a.dim / kPack), static_cast<uint32_t>(packs));
}

template <RowMove kMove, typename From>
cudaError_t launch_to(const RowMoveArguments& a, const LaunchStream& stream) {
  const bool packs = allow_packs({a.from, a.out}, a.dim, 8);
  return dispatch_activation(a.out.element, [&]<typename Out>() {
    return packs ? launch<kMove, From, Out, 8>(a, stream) : launch<kMove, From, Out, 1>(a, stream);
  });
}

template <typename Table, typename Out, int kPack>
cudaError_t launch_blend(const BlendArguments& a, const LaunchStream& stream) {
  const int64_t packs = a.count * (a.dim / kPack);
  if (packs > UINT32_MAX - kThreads) return cudaErrorInvalidValue;
  return launch_kernel(blend_rows<Table, Out, kPack>, {divide_up(packs, kThreads), kThreads},
                       stream, DeviceRows<Table>(a.table), reinterpret_cast<const int4*>(a.indices),
                       reinterpret_cast<const float4*>(a.weights), DeviceRows<Out>(a.out),
                       static_cast<uint32_t>(a.dim / kPack), static_cast<uint32_t>(packs));
}

}  // namespace

cudaError_t launch_move_rows(const RowMoveArguments& a, const LaunchStream& stream) {
  if (a.count == 0 || a.dim == 0) return cudaSuccess;
  if (a.move == RowMove::gather) {
    return dispatch_table(a.from.element, [&]<typename From>() {
      return launch_to<RowMove::gather, From>(a, stream);
    });
  }
  return dispatch_activation(a.from.element, [&]<typename From>() {
    return a.move == RowMove::scatter ? launch_to<RowMove::scatter, From>(a, stream)
                                      : launch_to<RowMove::add, From>(a, stream);
  });
}

cudaError_t launch_blend_rows(const BlendArguments& a, const LaunchStream& stream) {
  if (a.count == 0 || a.dim == 0) return cudaSuccess;
  const bool packs = allow_packs({a.table, a.out}, a.dim, 8);
  return dispatch_activation(a.table.element, [&]<typename Table>() {
    return dispatch_activation(a.out.element, [&]<typename Out>() {
      return packs ? launch_blend<Table, Out, 8>(a, stream)
                   : launch_blend<Table, Out, 1>(a, stream);
    });
  });
}

}  // namespace glimpse::cuda
