// What a step begins with: embeddings of its tokens and their angles, in one launch because at
// decoding each of them is over long before the next one starts.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kThreads = 256;

// Grid (2, tokens). The first block of a token moves its embedding, kPack elements a thread at a
// time; the second one takes its angles, as fill_rotary_table does.
template <typename Table, int kPack>
__global__ void __launch_bounds__(kThreads)
    begin_rows(DeviceRows<Table> table, const int32_t* __restrict__ ids,
               const int32_t* __restrict__ chosen, DeviceRows<float> hidden, int dim,
               RotaryTableArguments a) {
  const int64_t token = blockIdx.y;
  if (blockIdx.x == 0) {
    int32_t id = ids[token];
    if (id < 0) id = chosen[-1 - id];
    const Table* from = table.row(static_cast<uint32_t>(id));
    float* to = hidden.row(static_cast<uint32_t>(token));
    for (int i = static_cast<int>(threadIdx.x) * kPack; i < dim; i += kThreads * kPack) {
      float values[kPack];
      load(from + i, values);
      store(values, to + i);
    }
    return;
  }
  for (int64_t i = threadIdx.x; i < a.half; i += kThreads) {
    const int32_t position = a.positions[a.axes[i] * a.axis_stride + token];
    const float angle = static_cast<float>(position) * a.inverse_frequencies[i];
    a.cosines[token * a.cosine_stride + i] = cosf(angle);
    a.sines[token * a.sine_stride + i] = sinf(angle);
  }
}

template <typename Table, int kPack>
cudaError_t launch(const BeginStepArguments& a, cudaStream_t stream) {
  begin_rows<Table, kPack>
      <<<dim3(2, static_cast<unsigned>(a.rotary.tokens)), kThreads, 0, stream>>>(
          DeviceRows<Table>(a.table), a.ids, a.chosen, DeviceRows<float>(a.hidden),
          static_cast<int>(a.dim), a.rotary);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_begin_step(const BeginStepArguments& a, cudaStream_t stream) {
  constexpr int64_t kMaxGridRows = 65535;
  if (a.rotary.tokens == 0) return cudaSuccess;
  if (a.rotary.tokens > kMaxGridRows) return cudaErrorInvalidValue;
  const bool packs = allow_packs({a.table, a.hidden}, a.dim, 8);
  return dispatch_table(a.table.element, [&]<typename Table>() {
    return packs ? launch<Table, 8>(a, stream) : launch<Table, 1>(a, stream);
  });
}

}  // namespace glimpse::cuda
