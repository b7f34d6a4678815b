#include "cuda/cuda_linear.h"

#include "backend/backend.h"
#include "cuda/gemm.h"
#include "cuda/gemv.h"

namespace glimpse::cuda {
namespace {

/// The streamed product for a few bf16 rows, where it takes this shape.
bool try_gemv(const CudaContext& context, const GemvArguments& arguments) {
  if (!context.uses(Family::gemv) || !gemv_supports(arguments)) return false;
  require(launch_gemv(arguments, context.card().num_multiprocessors, context.stream()),
          "the streamed product");
  return true;
}

/// The tensor-core product, where it takes this shape.
bool try_gemm(const CudaContext& context, const GemmArguments& arguments) {
  if (!context.uses(Family::gemm) || !gemm_supports(arguments)) return false;
  const CardInfo& card = context.card();
  const GemmPlan plan =
      plan_gemm(arguments, {card.num_multiprocessors, card.shared_bytes_per_multiprocessor});
  require(launch_gemm(arguments, plan, context.stream()), "the tensor-core product");
  return true;
}

bool is_multipliable(const Tensor& x, const LinearPart& part) {
  const DType weight = part.weight.dtype();
  return x.dtype() == DType::bf16 && (weight == DType::bf16 || weight == DType::f8_e4m3);
}

GemmArguments gemm_arguments(const CudaContext& context, const Tensor& x, const LinearPart& part,
                             const Tensor& out) {
  return {.x = x.raw(),
          .x_stride = x.row_stride(),
          .weight = part.weight.raw(),
          .scales = pointer_of<float>(part.scales),
          .bias = pointer_of<float>(part.bias),
          .out = out.raw(),
          .out_stride = out.row_stride(),
          .num_rows = x.size(0),
          .out_features = out.size(1),
          .in_features = x.size(1),
          .weight_is_f8 = part.weight.dtype() == DType::f8_e4m3,
          .out_is_f32 = out.dtype() == DType::f32,
          .workspace = context.gemm_workspace()};
}

bool is_streamable(const Tensor& x, const LinearPart& part) {
  return x.size(0) <= kGemvRows && is_multipliable(x, part);
}

GemvArguments gemv_arguments(const Tensor& x, const LinearPart& part, const Tensor& out) {
  return {.x = x.raw(),
          .x_stride = x.row_stride(),
          .rows = static_cast<int>(x.size(0)),
          .weight = part.weight.raw(),
          .scales = pointer_of<float>(part.scales),
          .bias = pointer_of<float>(part.bias),
          .out = out.raw(),
          .out_stride = out.row_stride(),
          .outputs = out.size(1),
          .columns = x.size(1),
          .weight_is_f8 = part.weight.dtype() == DType::f8_e4m3,
          .out_is_f32 = out.dtype() == DType::f32};
}

void run_part(const CudaContext& context, const Tensor& x, const LinearPart& part, LinearMode mode,
              const Tensor& out) {
  if (is_streamable(x, part)) {
    GemvArguments streamed = gemv_arguments(x, part, out);
    streamed.op = mode == LinearMode::add ? GemvOp::add : GemvOp::store;
    if (try_gemv(context, streamed)) return;
  }
  if (is_multipliable(x, part)) {
    GemmArguments product = gemm_arguments(context, x, part, out);
    product.op = mode == LinearMode::add ? GemmOp::add : GemmOp::store;
    if (try_gemm(context, product)) return;
  }
  const LinearArguments arguments{.x = rows_of(x),
                                  .weight = part.weight.raw(),
                                  .weight_element = element_of(part.weight.dtype()),
                                  .scales = pointer_of<float>(part.scales),
                                  .bias = pointer_of<float>(part.bias),
                                  .out = rows_of(out),
                                  .adds_to_out = mode == LinearMode::add,
                                  .tokens = x.size(0),
                                  .in_features = x.size(1),
                                  .out_features = out.size(1)};
  require(launch_linear_plain(arguments, context.stream()), "the kernel of linear()");
}

}  // namespace

void run_linear(const CudaContext& context, const Tensor& x, const LinearWeight& weight,
                LinearMode mode, const Tensor& out) {
  int64_t column = 0;
  for (const LinearPart& part : weight.parts) {
    const int64_t count = part.weight.size(0);
    run_part(context, x, part, mode, out.slice(1, column, count));
    column += count;
  }
}

void run_linear_silu_mul(const CudaContext& context, const Tensor& x, const LinearWeight& gate_up,
                         const Tensor& scratch, const Tensor& out) {
  const LinearPart& part = gate_up.parts.front();
  const int64_t width = out.size(1);
  const bool is_f8 = part.weight.dtype() == DType::f8_e4m3;
  // The halves must start at whole scale blocks.
  if (gate_up.parts.size() == 1 && is_multipliable(x, part) && part.bias.empty() &&
      (!is_f8 || width % kScaleBlock == 0)) {
    const void* weight_up = part.weight.slice(0, width, width).raw();
    const int64_t scale_rows = width / kScaleBlock;
    const float* scales_up =
        is_f8 ? part.scales.slice(0, scale_rows, scale_rows).data<float>() : nullptr;
    if (is_streamable(x, part)) {
      GemvArguments streamed = gemv_arguments(x, part, out);
      streamed.op = GemvOp::silu_mul;
      streamed.weight_up = weight_up;
      streamed.scales_up = scales_up;
      if (try_gemv(context, streamed)) return;
    }
    GemmArguments product = gemm_arguments(context, x, part, out);
    product.op = GemmOp::silu_mul;
    product.weight_up = weight_up;
    product.scales_up = scales_up;
    if (try_gemm(context, product)) return;
  }
  for_scratch_rows(x, scratch, out, [&](const Tensor& rows, const Tensor& both, const Tensor& to) {
    run_linear(context, rows, gate_up, LinearMode::store, both);
    run_silu_mul(context, both, to);
  });
}

bool try_linear_gelu_tanh(const CudaContext& context, const Tensor& x, const LinearWeight& weight,
                          const Tensor& out) {
  if (weight.parts.size() != 1 || !is_multipliable(x, weight.parts.front())) return false;
  GemmArguments product = gemm_arguments(context, x, weight.parts.front(), out);
  product.op = GemmOp::gelu_tanh;
  return try_gemm(context, product);
}

void run_silu_mul(const CudaContext& context, const Tensor& gate_up, const Tensor& out) {
  const int64_t width = out.size(1);
  const ElementwiseArguments arguments{.operation = Elementwise::silu_mul,
                                       .a = rows_of(gate_up.slice(1, 0, width)),
                                       .b = rows_of(gate_up.slice(1, width, width)),
                                       .out = rows_of(out),
                                       .num_rows = out.size(0),
                                       .dim = width};
  require(launch_elementwise(arguments, context.stream()), "the kernel of silu_mul()");
}

}  // namespace glimpse::cuda
