// Blocks: (kv head, tile of queries, sequence). The 128 rows of a block are 128 / group queries
// times the `group` query heads that share a kv head, so K and V are read once for all of them. A
// tile of keys is one page of 32 tokens. Two pages are in flight; e4m3 pages arrive as they are and
// are widened (times their token's scale) to one bf16 tile in shared memory.
#include "cuda/attention_prefill.h"

#include <algorithm>

#include "cuda/attention_tile.cuh"
#include "cuda/launch.cuh"

namespace glimpse::cuda {
namespace {

constexpr int kHeadDim = 128;
constexpr int kPage = 32;  // tokens; kKvPageTokens
using Tile = AttentionTile<kHeadDim, kPage>;
constexpr int kRawBytes = kPage * kHeadDim;  // of an e4m3 page of one kv head
constexpr int kScaleBytes = kPage * 4;

struct PrefillParameters {
  const __nv_bfloat16* q;
  const uint8_t* keys;
  const uint8_t* values;
  const float* key_scales;
  const float* value_scales;
  const int32_t* query_begin;
  const int32_t* context_length;
  const int32_t* page_table;
  __nv_bfloat16* out;
  int64_t q_row_stride, out_row_stride, page_table_stride;
  int num_kv_heads, group;
  bool is_folded;
};

template <bool kF8>
constexpr int prefill_shared_bytes() {
  const int stage = kF8 ? 2 * kRawBytes + 2 * kScaleBytes : 2 * Tile::kTileBytes;
  return Tile::kQueryBytes + 2 * stage + (kF8 ? 2 * Tile::kTileBytes : 0);
}

/// What one block works on.
struct PrefillBlock {
  int kv_head, first_query, num_queries, first_row, context;
  const int32_t* pages;

  __device__ explicit PrefillBlock(const PrefillParameters& p) {
    kv_head = static_cast<int>(blockIdx.x);
    const int sequence = static_cast<int>(blockIdx.z);
    const int per_block = kAttentionRows / p.group;
    // Later queries see more keys: longest first, and where all blocks run at once the second half
    // in rising order, so that a multiprocessor gets a long one and a short one.
    const int rank = static_cast<int>(blockIdx.y);
    const int tiles = static_cast<int>(gridDim.y);
    const int half = (tiles + 1) / 2;
    const int tile = p.is_folded && rank >= half ? rank - half : tiles - 1 - rank;
    const int begin = __ldg(p.query_begin + sequence);
    num_queries = __ldg(p.query_begin + sequence + 1) - begin;
    context = __ldg(p.context_length + sequence);
    first_query = tile * per_block;
    first_row = begin + first_query;
    pages = p.page_table + sequence * p.page_table_stride;
  }
  /// Queries of this block.
  [[nodiscard]] __device__ int queries(int group) const {
    return min(kAttentionRows / group, num_queries - first_query);
  }
};

/// Rows of q into shared memory: row r is query r / group, head r % group of the kv head's.
__device__ __forceinline__ void copy_queries(const PrefillParameters& p, const PrefillBlock& block,
                                             uint32_t to) {
  const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks;
  const int num_rows = block.queries(p.group) * p.group;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / Tile::kChunks; row < kAttentionRows;
       row += kAttentionThreads / Tile::kChunks) {
    const int query = row / p.group;
    const int head = block.kv_head * p.group + row - query * p.group;
    copy_async(to + Tile::position(row, chunk),
               p.q + (block.first_row + query) * p.q_row_stride + head * kHeadDim + chunk * 8,
               row < num_rows);
  }
}

/// A page of keys and values of one kv head: bf16 straight into the tiles.
__device__ __forceinline__ void copy_page(const PrefillParameters& p, int64_t page_head,
                                          int num_valid, uint32_t to) {
  constexpr int kRowsPerPass = kAttentionThreads / Tile::kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks;
  const int row = static_cast<int>(threadIdx.x) / Tile::kChunks;
  const int64_t offset = (page_head * kPage + row) * Tile::kRowBytes + chunk * 16;
#pragma unroll
  for (int pass = 0; pass < kPage / kRowsPerPass; ++pass) {
    const int down = pass * kRowsPerPass;
    const uint32_t at = to + Tile::position(row + down, chunk);
    copy_async(at, p.keys + offset + down * Tile::kRowBytes, row + down < num_valid);
    copy_async(at + Tile::kTileBytes, p.values + offset + down * Tile::kRowBytes,
               row + down < num_valid);
  }
}

/// The same for e4m3, as stored: keys, values, then their scales.
__device__ __forceinline__ void copy_page_raw(const PrefillParameters& p, int64_t page_head,
                                              uint32_t to) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t offset = page_head * kRawBytes + thread * 16;
#pragma unroll
  for (int pass = 0; pass < kRawBytes / (kAttentionThreads * 16); ++pass) {
    const int down = pass * kAttentionThreads * 16;
    copy_async(to + thread * 16 + down, p.keys + offset + down, true);
    copy_async(to + kRawBytes + thread * 16 + down, p.values + offset + down, true);
  }
  constexpr int kChunks = kScaleBytes / 16;
  if (thread < 2 * kChunks) {
    const float* scales = thread < kChunks ? p.key_scales : p.value_scales;
    copy_async(to + 2 * kRawBytes + thread * 16, scales + page_head * kPage + thread % kChunks * 4,
               true);
  }
}

/// Widens a raw page to the bf16 tiles; tokens from `num_valid` on become zeros.
__device__ __forceinline__ void widen_page(const uint8_t* raw, uint8_t* tiles, int num_valid) {
  constexpr int kChunks = kHeadDim / 16;
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    const float* scales = reinterpret_cast<const float*>(raw + 2 * kRawBytes) + which * kPage;
#pragma unroll
    for (int pass = 0; pass < kRawBytes / (kAttentionThreads * 16); ++pass) {
      const int index = pass * kAttentionThreads + static_cast<int>(threadIdx.x);
      const int row = index / kChunks;
      const int chunk = index % kChunks;
      const uint4 bytes = *reinterpret_cast<const uint4*>(raw + which * kRawBytes + index * 16);
      const float scale = scales[row];
      const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
      uint32_t wide[8];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        uint32_t pair[2];
        e4m3_to_bf16(words[w], pair[0], pair[1]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 value = unpack_bf16(pair[half]);
          wide[2 * w + half] = row < num_valid ? pack_bf16(value.x * scale, value.y * scale) : 0U;
        }
      }
      uint8_t* to = tiles + which * Tile::kTileBytes;
      *reinterpret_cast<uint4*>(to + Tile::position(row, 2 * chunk)) =
          make_uint4(wide[0], wide[1], wide[2], wide[3]);
      *reinterpret_cast<uint4*>(to + Tile::position(row, 2 * chunk + 1)) =
          make_uint4(wide[4], wide[5], wide[6], wide[7]);
    }
  }
}

template <bool kF8>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attend_paged_prefill(const __grid_constant__ PrefillParameters p) {
  static_assert(prefill_shared_bytes<kF8>() <= 99 * 1024);
  wait_for_earlier_kernels();
  constexpr int kStageBytes = kF8 ? 2 * kRawBytes + 2 * kScaleBytes : 2 * Tile::kTileBytes;
  extern __shared__ __align__(128) uint8_t shared_memory[];
  uint8_t* const stages = shared_memory + Tile::kQueryBytes;
  uint8_t* const wide = stages + 2 * kStageBytes;  // e4m3 only

  const PrefillBlock block(p);
  if (block.first_query >= block.num_queries) return;
  const int num_queries = block.queries(p.group);
  // Query j of the sequence sees keys 0 .. before + j.
  const int before = block.context - block.num_queries;
  const int most_keys = before + block.first_query + num_queries;
  const int num_tiles = (most_keys + kPage - 1) / kPage;
  const int fewest_keys = before + block.first_query + 1;

  const auto copy_tile = [&](int tile, int page) {
    const int64_t page_head = static_cast<int64_t>(page) * p.num_kv_heads + block.kv_head;
    const uint32_t to = shared_address(stages + tile % 2 * kStageBytes);
    if constexpr (kF8) {
      copy_page_raw(p, page_head, to);
    } else {
      copy_page(p, page_head, block.context - tile * kPage, to);
    }
  };
  copy_queries(p, block, shared_address(shared_memory));
  copy_tile(0, __ldg(block.pages));
  copy_async_commit();
  int next_page = num_tiles > 1 ? __ldg(block.pages + 1) : 0;

  Tile attention(0.08838834764831845F);  // 128^-0.5
  int visible[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int query = min(attention.row_of(r) / p.group, num_queries - 1);
    visible[r] = fewest_keys + query;
  }
  attention.load_queries(shared_address(shared_memory));
#pragma unroll 1
  for (int tile = 0; tile < num_tiles; ++tile) {
    copy_async_wait<0>();
    __syncthreads();
    if (tile + 1 < num_tiles) copy_tile(tile + 1, next_page);
    copy_async_commit();
    if (tile + 2 < num_tiles) next_page = __ldg(block.pages + tile + 2);
    uint8_t* tiles = stages + tile % 2 * kStageBytes;
    if constexpr (kF8) {
      widen_page(tiles, wide, block.context - tile * kPage);
      __syncthreads();
      tiles = wide;
    }
    const uint32_t keys = shared_address(tiles);
    attention.attend(keys, keys + Tile::kTileBytes, (tile + 1) * kPage > fewest_keys,
                     [&](int r) { return visible[r] - tile * kPage; });
  }
  let_next_kernel_start();
  attention.store([&](int r) -> __nv_bfloat16* {
    const int row = attention.row_of(r);
    const int query = row / p.group;
    if (query >= num_queries) return nullptr;
    const int head = block.kv_head * p.group + row - query * p.group;
    return p.out + (block.first_row + query) * p.out_row_stride + head * kHeadDim;
  });
}

}  // namespace

bool attention_prefill_supports(const AttentionPrefillArguments& a, int64_t head_dim) {
  const auto good = [](const void* pointer, int64_t stride) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 8 == 0;
  };
  return head_dim == kHeadDim && a.num_kv_heads > 0 && a.num_heads % a.num_kv_heads == 0 &&
         a.num_heads / a.num_kv_heads <= kAttentionRows && good(a.q, a.q_row_stride) &&
         good(a.out, a.out_row_stride) && good(a.keys, 0) && good(a.values, 0) &&
         good(a.key_scales, 0) && good(a.value_scales, 0);
}

cudaError_t prepare_attention_prefill() {
  const cudaError_t error =
      cudaFuncSetAttribute(attend_paged_prefill<false>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           prefill_shared_bytes<false>());
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(attend_paged_prefill<true>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              prefill_shared_bytes<true>());
}

cudaError_t launch_attention_prefill(const AttentionPrefillArguments& a,
                                     const LaunchStream& stream) {
  if (a.num_sequences == 0 || a.max_queries == 0) return cudaSuccess;
  PrefillParameters p{};
  p.q = static_cast<const __nv_bfloat16*>(a.q);
  p.keys = static_cast<const uint8_t*>(a.keys);
  p.values = static_cast<const uint8_t*>(a.values);
  p.key_scales = a.key_scales;
  p.value_scales = a.value_scales;
  p.query_begin = a.query_begin;
  p.context_length = a.context_length;
  p.page_table = a.page_table;
  p.out = static_cast<__nv_bfloat16*>(a.out);
  p.q_row_stride = a.q_row_stride;
  p.out_row_stride = a.out_row_stride;
  p.page_table_stride = a.page_table_stride;
  p.num_kv_heads = a.num_kv_heads;
  p.group = a.num_heads / a.num_kv_heads;
  const int per_block = kAttentionRows / p.group;
  const int tiles = (a.max_queries + per_block - 1) / per_block;
  constexpr int kBlocksAtOnce = 264;  // of the largest cards; only the order depends on it
  p.is_folded = tiles * a.num_kv_heads * a.num_sequences <= kBlocksAtOnce;
  const dim3 grid(static_cast<unsigned>(a.num_kv_heads), static_cast<unsigned>(tiles),
                  static_cast<unsigned>(a.num_sequences));
  const int shared_bytes =
      a.kv_is_f8 ? prefill_shared_bytes<true>() : prefill_shared_bytes<false>();
  return launch_kernel(a.kv_is_f8 ? attend_paged_prefill<true> : attend_paged_prefill<false>,
                       {grid, kAttentionThreads, shared_bytes}, stream, p);
}

}  // namespace glimpse::cuda
