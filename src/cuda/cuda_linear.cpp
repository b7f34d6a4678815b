#include "cuda/cuda_linear.h"

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

bool is_streamable(const Tensor& x, const LinearPart& part) {
  const DType weight = part.weight.dtype();
  return x.dtype() == DType::bf16 && x.size(0) <= kGemvRows &&
         (weight == DType::bf16 || weight == DType::f8_e4m3);
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
  if (gate_up.parts.size() == 1 && is_streamable(x, part) && part.bias.empty() &&
      (!is_f8 || width % kScaleBlock == 0)) {
    GemvArguments streamed = gemv_arguments(x, part, out);
    streamed.op = GemvOp::silu_mul;
    streamed.weight_up = part.weight.slice(0, width, width).raw();
    if (is_f8) {
      streamed.scales_up =
          part.scales.slice(0, width / kScaleBlock, width / kScaleBlock).data<float>();
    }
    if (try_gemv(context, streamed)) return;
  }
  run_linear(context, x, gate_up, LinearMode::store, scratch);
  run_silu_mul(context, scratch, out);
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
