#include "cuda/cuda_linear.h"

#include <algorithm>

#include "cuda/gemm.h"
#include "cuda/gemm_w8a8.h"
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
  require(launch_gemm(arguments, plan, context.launch_stream()), "the tensor-core product");
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

bool is_f8(const LinearPart& part) {
  return part.weight.dtype() == DType::f8_e4m3;
}

/// Whether products with these weights are W8A8.
bool is_w8a8(const QuantizedActivations& quantized, const LinearWeight& weight) {
  return !quantized.empty() && std::ranges::any_of(weight.parts, is_f8);
}

void quantize(const CudaContext& context, const Tensor& x, const QuantizedActivations& quantized) {
  const QuantizeArguments arguments{.x = rows_of(x),
                                    .codes = quantized.codes.raw(),
                                    .codes_stride = quantized.codes.row_stride(),
                                    .scales = quantized.scales.data<float>(),
                                    .scale_stride = quantized.scales.row_stride(),
                                    .num_rows = x.size(0),
                                    .dim = x.size(1)};
  require(launch_quantize(arguments, context.stream()), "the kernel that rounds to FP8");
}

W8A8Arguments w8a8_arguments(const QuantizedActivations& quantized, const LinearPart& part,
                             const Tensor& out) {
  return {.codes = quantized.codes.raw(),
          .codes_stride = quantized.codes.row_stride(),
          .x_scales = quantized.scales.data<float>(),
          .x_scale_stride = quantized.scales.row_stride(),
          .weight = part.weight.raw(),
          .scales = part.scales.data<float>(),
          .bias = pointer_of<float>(part.bias),
          .out = out.raw(),
          .out_stride = out.row_stride(),
          .num_rows = out.size(0),
          .out_features = out.size(1),
          .in_features = part.weight.size(1),
          .out_is_f32 = out.dtype() == DType::f32};
}

/// The tensor-core product of FP8 and FP8, where it takes this shape.
bool try_w8a8(const CudaContext& context, const W8A8Arguments& arguments) {
  if (!context.uses(Family::gemm_w8a8) || !w8a8_supports(arguments)) return false;
  const W8A8Tile tile = choose_w8a8_tile(arguments, context.card().num_multiprocessors);
  require(launch_w8a8(arguments, tile, context.stream()), "the tensor-core product in FP8");
  return true;
}

/// Of an x that quantize() has rounded.
void run_quantized_part(const CudaContext& context, const QuantizedActivations& quantized,
                        const LinearPart& part, LinearMode mode, const Tensor& out) {
  W8A8Arguments product = w8a8_arguments(quantized, part, out);
  product.op = mode == LinearMode::add ? GemmOp::add : GemmOp::store;
  if (try_w8a8(context, product)) return;
  const LinearArguments arguments{.x = rows_of(quantized.codes),
                                  .x_scales = product.x_scales,
                                  .x_scale_stride = product.x_scale_stride,
                                  .weight = part.weight.raw(),
                                  .weight_element = Element::f8,
                                  .scales = product.scales,
                                  .bias = product.bias,
                                  .out = rows_of(out),
                                  .adds_to_out = mode == LinearMode::add,
                                  .tokens = product.num_rows,
                                  .in_features = product.in_features,
                                  .out_features = product.out_features};
  require(launch_linear_plain(arguments, context.stream()), "the kernel of linear()");
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

/// Both products and silu in one kernel, where one takes this shape.
bool try_silu_mul(const CudaContext& context, const Tensor& x, const LinearWeight& gate_up,
                  const QuantizedActivations& quantized, const Tensor& out) {
  const LinearPart& part = gate_up.parts.front();
  const int64_t width = out.size(1);
  // The halves must start at whole scale blocks.
  if (gate_up.parts.size() != 1 || !part.bias.empty() ||
      (is_f8(part) && width % kScaleBlock != 0)) {
    return false;
  }
  const void* weight_up = part.weight.slice(0, width, width).raw();
  const int64_t scale_rows = width / kScaleBlock;
  const float* scales_up =
      is_f8(part) ? part.scales.slice(0, scale_rows, scale_rows).data<float>() : nullptr;
  if (is_w8a8(quantized, gate_up)) {
    W8A8Arguments product = w8a8_arguments(quantized, part, out);
    product.op = GemmOp::silu_mul;
    product.weight_up = weight_up;
    product.scales_up = scales_up;
    quantize(context, x, quantized);
    return try_w8a8(context, product);
  }
  if (!is_multipliable(x, part)) return false;
  if (is_streamable(x, part)) {
    GemvArguments streamed = gemv_arguments(x, part, out);
    streamed.op = GemvOp::silu_mul;
    streamed.weight_up = weight_up;
    streamed.scales_up = scales_up;
    if (try_gemv(context, streamed)) return true;
  }
  GemmArguments product = gemm_arguments(context, x, part, out);
  product.op = GemmOp::silu_mul;
  product.weight_up = weight_up;
  product.scales_up = scales_up;
  return try_gemm(context, product);
}

}  // namespace

void run_linear(const CudaContext& context, const Tensor& x, const LinearWeight& weight,
                const QuantizedActivations& quantized, LinearMode mode, const Tensor& out) {
  const bool rounds_x = is_w8a8(quantized, weight);
  if (rounds_x) quantize(context, x, quantized);
  int64_t column = 0;
  for (const LinearPart& part : weight.parts) {
    const int64_t count = part.weight.size(0);
    const Tensor to = out.slice(1, column, count);
    if (rounds_x && is_f8(part)) {
      run_quantized_part(context, quantized, part, mode, to);
    } else {
      run_part(context, x, part, mode, to);
    }
    column += count;
  }
}

void run_linear_silu_mul(const CudaContext& context, const Tensor& x, const LinearWeight& gate_up,
                         const QuantizedActivations& quantized, const Tensor& scratch,
                         const Tensor& out) {
  if (try_silu_mul(context, x, gate_up, quantized, out)) return;
  for_scratch_rows(x, scratch, out, [&](const Tensor& rows, const Tensor& both, const Tensor& to) {
    run_linear(context, rows, gate_up, quantized, LinearMode::store, both);
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

bool try_linear_rotate(const CudaContext& context, const Tensor& x, const LinearWeight& weight,
                       const HeadRotation& rotation, const Tensor& out) {
  const int64_t head_dim = 2 * rotation.cosines.size(1);
  if (head_dim != kRotatedHeadDim || weight.parts.size() != 1 ||
      !is_multipliable(x, weight.parts.front())) {
    return false;
  }
  GemmArguments product = gemm_arguments(context, x, weight.parts.front(), out);
  product.op = GemmOp::rotate;
  product.cosines = rotation.cosines.data<float>();
  product.sines = rotation.sines.data<float>();
  product.rotated_features = rotation.num_heads * head_dim;
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
  require(launch_elementwise(arguments, context.launch_stream()), "the kernel of silu_mul()");
}

}  // namespace glimpse::cuda
