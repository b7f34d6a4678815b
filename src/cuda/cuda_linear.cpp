#include "cuda/cuda_linear.h"

namespace glimpse::cuda {
namespace {

void run_part(const CudaContext& context, const Tensor& x, const LinearPart& part, LinearMode mode,
              const Tensor& out) {
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
