// Writes keys and values of new tokens to their slots. One warp per token, kv head and kind (key
// or value); the loop over the head stays in registers where it is 128 wide.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr float kLargestFloat8 = 448.0F;

template <typename T, typename Cache>
__device__ void store_head(const T* from, Cache* to, float* scale, int head_dim, int lane) {
  if constexpr (sizeof(Cache) == 1) {
    float largest = 0;
    for (int i = lane; i < head_dim; i += 32) largest = fmaxf(largest, fabsf(to_float(from[i])));
    largest = warp_max(largest);
    // A head of zeros takes the scale 1.
    const float factor = largest > 0 ? largest / kLargestFloat8 : 1.0F;
    if (lane == 0) *scale = factor;
    for (int i = lane; i < head_dim; i += 32) to[i] = from_float<Cache>(to_float(from[i]) / factor);
  } else {
    for (int i = lane; i < head_dim; i += 32) to[i] = from_float<Cache>(to_float(from[i]));
  }
}

template <typename T, typename Cache>
__global__ void __launch_bounds__(64)
    store_kv(DeviceRows<T> k, DeviceRows<T> v, const int32_t* __restrict__ slots, KvPages kv) {
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
  store_head((is_key ? k : v).at(token, head), cache, scales + line, static_cast<int>(kv.head_dim),
             lane);
}

}  // namespace

cudaError_t launch_store_kv(const StoreKvArguments& a, cudaStream_t stream) {
  if (a.tokens == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(a.tokens), static_cast<unsigned>(a.kv.kv_heads));
  return dispatch_activation(a.k.element, [&]<typename T>() {
    return dispatch_cache(a.kv.element, [&]<typename Cache>() {
      store_kv<T, Cache>
          <<<grid, 64, 0, stream>>>(DeviceRows<T>(a.k), DeviceRows<T>(a.v), a.slots, a.kv);
      return cudaGetLastError();
    });
  });
}

}  // namespace glimpse::cuda
