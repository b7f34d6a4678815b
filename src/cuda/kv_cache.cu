// Writes keys and values of new tokens to their slots. One warp per token, kv head and kind (key
// or value), four elements a lane where the rows allow it.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr float kLargestFloat8 = 448.0F;

template <typename T, typename Cache, int kPack>
__device__ void store_head(const T* from, Cache* to, float* scale, int head_dim, int lane) {
  float values[kPack];
  float factor = 1.0F;  // of a head of zeros
  if constexpr (sizeof(Cache) == 1) {
    float largest = 0;
    for (int i = lane * kPack; i < head_dim; i += 32 * kPack) {
      load(from + i, values);
      for (const float value : values) largest = fmaxf(largest, fabsf(value));
    }
    largest = warp_max(largest);
    if (largest > 0) factor = largest / kLargestFloat8;
    if (lane == 0) *scale = factor;
  }
  for (int i = lane * kPack; i < head_dim; i += 32 * kPack) {
    load(from + i, values);
    if constexpr (sizeof(Cache) == 1) {
#pragma unroll
      for (float& value : values) value /= factor;
    }
    store(values, to + i);
  }
}

template <typename T, typename Cache, int kPack>
__global__ void __launch_bounds__(64)
    store_kv(DeviceRows<T> k, DeviceRows<T> v, const int32_t* __restrict__ slots, KvPages kv) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool is_key = threadIdx.x < 32;
  const uint32_t token = blockIdx.x;
  const uint32_t head = blockIdx.y;
  const int32_t slot = slots[token];
  if (slot < 0) return;  // padding
  const int64_t page = slot / kv.page_tokens;
  const int64_t line = (page * kv.kv_heads + head) * kv.page_tokens + slot % kv.page_tokens;
  auto* cache = static_cast<Cache*>(is_key ? kv.keys : kv.values) + line * kv.head_dim;
  float* scales = is_key ? kv.key_scales : kv.value_scales;
  store_head<T, Cache, kPack>((is_key ? k : v).at(token, head), cache, scales + line,
                              static_cast<int>(kv.head_dim), lane);
}

}  // namespace

cudaError_t launch_store_kv(const StoreKvArguments& a, const LaunchStream& stream) {
  if (a.tokens == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(a.tokens), static_cast<unsigned>(a.kv.kv_heads));
  // The cache's own rows are aligned where the head's width is a multiple of the pack.
  const bool packs = allow_packs({a.k, a.v}, a.kv.head_dim, 4);
  return dispatch_activation(a.k.element, [&]<typename T>() {
    return dispatch_cache(a.kv.element, [&]<typename Cache>() {
      const DeviceRows<T> k(a.k);
      const DeviceRows<T> v(a.v);
      return launch_kernel(packs ? store_kv<T, Cache, 4> : store_kv<T, Cache, 1>, {grid, 64},
                           stream, k, v, a.slots, a.kv);
    });
  });
}

}  // namespace glimpse::cuda
