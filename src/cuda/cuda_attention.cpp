#include "cuda/cuda_attention.h"

#include "cuda/attention_prefill.h"
#include "cuda/attention_vision.h"

namespace glimpse::cuda {
namespace {

void require_head_dim(int64_t head_dim) {
  if (head_dim <= kMaxHeadDim) return;
  throw Error(ErrorCode::unsupported,
              fmt::format("heads of {} dimensions; the CUDA kernels take at most {}", head_dim,
                          kMaxHeadDim),
              "run this model with --device cpu");
}

/// Heads are neighbours, as in slices of a fused projection.
bool heads_touch(const Tensor& x) {
  return x.stride(1) == x.size(2);
}

/// Below this many queries the plain kernel has more blocks to run.
constexpr int64_t kFewestPrefillQueries = 8;

bool try_prefill(const CudaContext& context, const Tensor& q, const PagedKv& kv,
                 const PagedSpans& spans, const Tensor& out) {
  const DType stored = kv.keys.dtype();
  if (!context.uses(Family::attention_prefill) || spans.max_queries < kFewestPrefillQueries ||
      q.dtype() != DType::bf16 || (stored != DType::bf16 && stored != DType::f8_e4m3) ||
      !heads_touch(q) || !heads_touch(out)) {
    return false;
  }
  const AttentionPrefillArguments arguments{
      .q = q.raw(),
      .q_row_stride = q.stride(0),
      .keys = kv.keys.raw(),
      .values = kv.values.raw(),
      .key_scales = pointer_of<float>(kv.key_scales),
      .value_scales = pointer_of<float>(kv.value_scales),
      .query_begin = spans.query_begin.data<int32_t>(),
      .context_length = spans.context_length.data<int32_t>(),
      .page_table = spans.page_table.data<int32_t>(),
      .page_table_stride = spans.page_table.row_stride(),
      .out = out.raw(),
      .out_row_stride = out.stride(0),
      .num_sequences = static_cast<int>(spans.context_length.size(0)),
      .num_heads = static_cast<int>(q.size(1)),
      .num_kv_heads = static_cast<int>(kv.keys.size(1)),
      .max_queries = static_cast<int>(spans.max_queries),
      .kv_is_f8 = stored == DType::f8_e4m3};
  if (!attention_prefill_supports(arguments, q.size(2))) return false;
  require(launch_attention_prefill(arguments, context.launch_stream()), "prefill attention");
  return true;
}

bool try_vision(const CudaContext& context, const Tensor& q, const Tensor& k, const Tensor& v,
                std::span<const int64_t> segment_begin, const Tensor& out) {
  if (!context.uses(Family::attention_vision) || q.dtype() != DType::bf16) return false;
  for (const Tensor& x : {q, k, v, out}) {
    if (!heads_touch(x)) return false;
  }
  const AttentionVisionArguments arguments{.q = q.raw(),
                                           .k = k.raw(),
                                           .v = v.raw(),
                                           .q_row_stride = q.stride(0),
                                           .k_row_stride = k.stride(0),
                                           .v_row_stride = v.stride(0),
                                           .out = out.raw(),
                                           .out_row_stride = out.stride(0),
                                           .num_heads = static_cast<int>(q.size(1)),
                                           .head_dim = static_cast<int>(q.size(2)),
                                           .segment_begin = segment_begin};
  if (!attention_vision_supports(arguments)) return false;
  require(launch_attention_vision(arguments, context.launch_stream()), "vision attention");
  return true;
}

}  // namespace

KvPages pages_of(const PagedKv& kv) {
  return {.keys = kv.keys.raw(),
          .values = kv.values.raw(),
          .key_scales = pointer_of<float>(kv.key_scales),
          .value_scales = pointer_of<float>(kv.value_scales),
          .element = element_of(kv.keys.dtype()),
          .kv_heads = kv.keys.size(1),
          .page_tokens = kv.keys.size(2),
          .head_dim = kv.keys.size(3)};
}

void run_attend_paged(const CudaContext& context, const Tensor& q, const PagedKv& kv,
                      const PagedSpans& spans, const Tensor& out) {
  require_head_dim(q.size(2));
  if (try_prefill(context, q, kv, spans, out)) return;
  const PagedAttentionArguments arguments{.q = rows_of(q),
                                          .kv = pages_of(kv),
                                          .query_begin = spans.query_begin.data<int32_t>(),
                                          .context_length = spans.context_length.data<int32_t>(),
                                          .page_table = spans.page_table.data<int32_t>(),
                                          .page_table_stride = spans.page_table.row_stride(),
                                          .num_sequences = spans.context_length.size(0),
                                          .out = rows_of(out),
                                          .tokens = q.size(0)};
  require(launch_attend_paged_plain(arguments, context.stream()), "the kernel of attend_paged()");
}

void run_attend_packed(const CudaContext& context, const Tensor& q, const Tensor& k,
                       const Tensor& v, std::span<const int64_t> segment_begin, const Tensor& out) {
  require_head_dim(q.size(2));
  if (try_vision(context, q, k, v, segment_begin, out)) return;
  const PackedAttentionArguments arguments{.q = rows_of(q),
                                           .k = rows_of(k),
                                           .v = rows_of(v),
                                           .out = rows_of(out),
                                           .segment_begin = segment_begin,
                                           .head_dim = q.size(2)};
  require(launch_attend_packed_plain(arguments, context.stream()), "the kernel of attend_packed()");
}

}  // namespace glimpse::cuda
