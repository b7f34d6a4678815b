#include "cuda/cuda_attention.h"

namespace glimpse::cuda {
namespace {

void require_head_dim(int64_t head_dim) {
  if (head_dim <= kMaxHeadDim) return;
  throw Error(ErrorCode::unsupported,
              fmt::format("heads of {} dimensions; the CUDA kernels take at most {}", head_dim,
                          kMaxHeadDim),
              "run this model with --device cpu");
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
  const PackedAttentionArguments arguments{.q = rows_of(q),
                                           .k = rows_of(k),
                                           .v = rows_of(v),
                                           .out = rows_of(out),
                                           .segment_begin = segment_begin,
                                           .head_dim = q.size(2)};
  require(launch_attend_packed_plain(arguments, context.stream()), "the kernel of attend_packed()");
}

}  // namespace glimpse::cuda
