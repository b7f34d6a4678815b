// Which kernel runs an attention.
#pragma once

#include <span>

#include "backend/backend.h"
#include "cuda/cuda_context.h"

namespace glimpse::cuda {

[[nodiscard]] KvPages pages_of(const PagedKv& kv);

void run_attend_paged(const CudaContext& context, const Tensor& q, const PagedKv& kv,
                      const PagedSpans& spans, const Tensor& out);
void run_attend_packed(const CudaContext& context, const Tensor& q, const Tensor& k,
                       const Tensor& v, std::span<const int64_t> segment_begin, const Tensor& out);

}  // namespace glimpse::cuda
