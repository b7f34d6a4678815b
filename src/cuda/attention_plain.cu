// Attention, plain: a block of eight warps per query row and head. Each warp walks every eighth
// group of four keys with an online softmax in f32; the eight parts are added at the end in a fixed
// order. Any head dimension up to kMaxHeadDim, any dtype.
#include "cuda/elements.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kKeysAtOnce = 4;
constexpr int kMaxSegments = 128;  // of one launch of packed attention

/// A key and its value, with their scales (1 unless f8).
template <typename Cache>
struct KeyValue {
  const Cache* key;
  const Cache* value;
  float key_scale;
  float value_scale;
};

/// Keys of one sequence and kv head in the paged cache.
template <typename Cache>
struct PagedKeys {
  KvPages kv;
  const int32_t* pages;
  uint32_t head;

  __device__ KeyValue<Cache> operator()(int index) const {
    const int64_t page = pages[index / kv.page_tokens];
    const int64_t line = (page * kv.kv_heads + head) * kv.page_tokens + index % kv.page_tokens;
    KeyValue<Cache> result = {static_cast<const Cache*>(kv.keys) + line * kv.head_dim,
                              static_cast<const Cache*>(kv.values) + line * kv.head_dim, 1.0F,
                              1.0F};
    if constexpr (sizeof(Cache) == 1) {
      result.key_scale = kv.key_scales[line];
      result.value_scale = kv.value_scales[line];
    }
    return result;
  }
};

/// Keys of one segment of rows.
template <typename T>
struct SegmentKeys {
  DeviceRows<T> k;
  DeviceRows<T> v;
  uint32_t first;
  uint32_t head;

  __device__ KeyValue<T> operator()(int index) const {
    const uint32_t token = first + static_cast<uint32_t>(index);
    return {k.at(token, head), v.at(token, head), 1.0F, 1.0F};
  }
};

/// Part of a softmax: its largest score, its sum relative to that, and the lane's share of the
/// weighted values: dimensions lane + 32 i.
template <int kPerLane>
struct SoftmaxPart {
  float largest = -INFINITY;
  float sum = 0;
  float values[kPerLane] = {};
};

/// Attention of one query over keys warp * 4 .. + 3, (warp + kWarps) * 4 .. of `count`.
template <int kPerLane, typename Keys>
__device__ SoftmaxPart<kPerLane> attend_share(const float (&q)[kPerLane], const Keys& keys,
                                              int count, int head_dim) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  SoftmaxPart<kPerLane> part;
  for (int base = warp * kKeysAtOnce; base < count; base += kWarps * kKeysAtOnce) {
    float scores[kKeysAtOnce];
    float largest = part.largest;
#pragma unroll
    for (int j = 0; j < kKeysAtOnce; ++j) {
      float product = 0;
      const auto key = keys(min(base + j, count - 1));
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int d = lane + 32 * i;
        if (d < head_dim) product += q[i] * to_float(key.key[d]);
      }
      scores[j] = base + j < count ? warp_sum(product) * key.key_scale : -INFINITY;
      largest = fmaxf(largest, scores[j]);
    }
    const float shrink = expf(part.largest - largest);
    part.largest = largest;
    part.sum *= shrink;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) part.values[i] *= shrink;
#pragma unroll
    for (int j = 0; j < kKeysAtOnce; ++j) {
      if (base + j >= count) break;
      const auto value = keys(base + j);
      const float weight = expf(scores[j] - largest);
      part.sum += weight;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int d = lane + 32 * i;
        if (d < head_dim) part.values[i] += weight * value.value_scale * to_float(value.value[d]);
      }
    }
  }
  return part;
}

/// out = softmax(q . keys * head_dim^-0.5) values, by a whole block. No keys: zeros.
template <int kPerLane, typename T, typename Keys>
__device__ void attend_row(const T* query, const Keys& keys, int count, int head_dim, T* out) {
  __shared__ float largest[kWarps];
  __shared__ float sums[kWarps];
  __shared__ float values[kWarps][kPerLane * 32];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const float scale = 1.0F / sqrtf(static_cast<float>(head_dim));
  float q[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    q[i] = d < head_dim ? to_float(query[d]) * scale : 0.0F;
  }
  const SoftmaxPart<kPerLane> part = attend_share(q, keys, count, head_dim);
  if (lane == 0) {
    largest[warp] = part.largest;
    sums[warp] = part.sum;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) values[warp][lane + 32 * i] = part.values[i];
  __syncthreads();
  float overall = -INFINITY;
  for (const float each : largest) overall = fmaxf(overall, each);
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kWarps * 32) {
    float sum = 0;
    float value = 0;
    for (int i = 0; i < kWarps; ++i) {
      if (sums[i] == 0) continue;  // a warp without keys
      const float factor = expf(largest[i] - overall);
      sum += factor * sums[i];
      value += factor * values[i][d];
    }
    out[d] = from_float<T>(sum > 0 ? value / sum : 0.0F);
  }
}

template <typename T, typename Cache, int kPerLane>
__global__ void __launch_bounds__(kWarps * 32)
    attend_paged(DeviceRows<T> q, KvPages kv, const int32_t* __restrict__ query_begin,
                 const int32_t* __restrict__ context_length, const int32_t* __restrict__ page_table,
                 int64_t page_table_stride, int num_sequences, DeviceRows<T> out) {
  const int row = static_cast<int>(blockIdx.x);
  const uint32_t head = blockIdx.y;
  int sequence = 0;
  while (sequence < num_sequences && query_begin[sequence + 1] <= row) ++sequence;
  if (sequence == num_sequences || row < query_begin[sequence]) return;  // padding
  const int queries = query_begin[sequence + 1] - query_begin[sequence];
  const int seen = context_length[sequence] - queries + (row - query_begin[sequence]) + 1;
  const auto group = static_cast<uint32_t>(q.heads / kv.kv_heads);
  const PagedKeys<Cache> keys{kv, page_table + sequence * page_table_stride, head / group};
  attend_row<kPerLane>(q.at(blockIdx.x, head), keys, max(seen, 0), static_cast<int>(kv.head_dim),
                       out.at(blockIdx.x, head));
}

struct Segments {
  int count;
  int begin[kMaxSegments + 1];
};

template <typename T, int kPerLane>
__global__ void __launch_bounds__(kWarps * 32)
    attend_packed(DeviceRows<T> q, DeviceRows<T> k, DeviceRows<T> v, Segments segments,
                  int head_dim, DeviceRows<T> out) {
  const int row = segments.begin[0] + static_cast<int>(blockIdx.x);
  const uint32_t head = blockIdx.y;
  int segment = 0;
  while (segments.begin[segment + 1] <= row) ++segment;
  const int first = segments.begin[segment];
  const SegmentKeys<T> keys{k, v, static_cast<uint32_t>(first), head};
  attend_row<kPerLane>(q.at(static_cast<uint32_t>(row), head), keys,
                       segments.begin[segment + 1] - first, head_dim,
                       out.at(static_cast<uint32_t>(row), head));
}

/// body.operator()<kPerLane>(): dimensions of a head that one lane keeps.
template <typename Body>
cudaError_t dispatch_head_dim(int64_t head_dim, Body&& body) {
  if (head_dim <= 64) return body.template operator()<2>();
  if (head_dim <= 128) return body.template operator()<4>();
  if (head_dim <= kMaxHeadDim) return body.template operator()<8>();
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_attend_paged_plain(const PagedAttentionArguments& a, cudaStream_t stream) {
  if (a.tokens == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(a.tokens), static_cast<unsigned>(a.q.heads));
  return dispatch_activation(a.q.element, [&]<typename T>() {
    return dispatch_cache(a.kv.element, [&]<typename Cache>() {
      return dispatch_head_dim(a.kv.head_dim, [&]<int kPerLane>() {
        attend_paged<T, Cache, kPerLane><<<grid, kWarps * 32, 0, stream>>>(
            DeviceRows<T>(a.q), a.kv, a.query_begin, a.context_length, a.page_table,
            a.page_table_stride, static_cast<int>(a.num_sequences), DeviceRows<T>(a.out));
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t launch_attend_packed_plain(const PackedAttentionArguments& a, cudaStream_t stream) {
  const auto segments_total = static_cast<int64_t>(a.segment_begin.size()) - 1;
  for (int64_t first = 0; first < segments_total; first += kMaxSegments) {
    Segments segments{};
    segments.count = static_cast<int>(segments_total - first < kMaxSegments ? segments_total - first
                                                                            : kMaxSegments);
    for (int i = 0; i <= segments.count; ++i) {
      segments.begin[i] = static_cast<int>(a.segment_begin[static_cast<size_t>(first + i)]);
    }
    const int rows = segments.begin[segments.count] - segments.begin[0];
    if (rows == 0) continue;
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(a.q.heads));
    const cudaError_t error = dispatch_activation(a.q.element, [&]<typename T>() {
      return dispatch_head_dim(a.head_dim, [&]<int kPerLane>() {
        attend_packed<T, kPerLane><<<grid, kWarps * 32, 0, stream>>>(
            DeviceRows<T>(a.q), DeviceRows<T>(a.k), DeviceRows<T>(a.v), segments,
            static_cast<int>(a.head_dim), DeviceRows<T>(a.out));
        return cudaGetLastError();
      });
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace glimpse::cuda
