#include "cuda/self_test.h"

#include <array>
#include <cmath>
#include <random>

#include <fmt/format.h>

#include "cuda/self_test_outcome.h"

namespace glimpse::cuda {
namespace {

// Both kernels round bf16 inputs alike and sum in f32; what differs is the order of the sums, the
// rounding of probabilities to bf16 before they meet the values, and that of a bf16 output.
constexpr double kLargestDifference = 0x1p-6;  // of the largest element

/// Device tensors of random numbers, and the comparison of two ways to compute with them.
class Bench {
 public:
  Bench(Backend& backend, CudaContext& context)
      : backend_(backend),
        context_(context),
        arena_(backend.allocate(kBytes, "the self-test of the kernels"), "self-test") {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& number : numbers_) number = normal(random);
  }

  [[nodiscard]] Backend& backend() const { return backend_; }

  Tensor zeros(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = arena_.allocate(dtype, shape);
    backend_.zero(tensor);
    return tensor;
  }
  /// Normal with this deviation; F32 (norm weights, scales) the absolute values of that.
  Tensor random(DType dtype, std::initializer_list<int64_t> shape, float spread = 1.0F) {
    const Tensor tensor = arena_.allocate(dtype, shape);
    std::vector<std::byte> bytes(static_cast<size_t>(tensor.num_bytes()));
    for (int64_t i = 0; i < tensor.num_elements(); ++i) {
      const float value = spread * numbers_[next_++ % kNumbers];
      if (dtype == DType::bf16) reinterpret_cast<BFloat16*>(bytes.data())[i] = to_bfloat16(value);
      if (dtype == DType::f8_e4m3) {
        reinterpret_cast<Float8E4M3*>(bytes.data())[i] = to_float8_e4m3(value);
      }
      if (dtype == DType::f32) reinterpret_cast<float*>(bytes.data())[i] = std::fabs(value);
    }
    backend_.upload(bytes, tensor);
    return tensor;
  }
  /// A weight whose products of unit numbers are of about unit size.
  LinearPart weight(DType dtype, int64_t out, int64_t in) {
    const float spread = 1.0F / std::sqrt(static_cast<float>(in));
    LinearPart part;
    part.weight = random(dtype, {out, in}, dtype == DType::f8_e4m3 ? 1.0F : spread);
    if (dtype == DType::f8_e4m3) {
      part.scales = random(DType::f32, {out / kScaleBlock, in / kScaleBlock}, spread);
    }
    return part;
  }
  Tensor integers(const std::vector<int32_t>& values) {
    const Tensor tensor = arena_.allocate(DType::i32, {static_cast<int64_t>(values.size())});
    backend_.upload(std::as_bytes(std::span(values)), tensor);
    return tensor;
  }

  /// Whether `run` writes the same to `out` with the family as without.
  template <typename Run>
  bool agrees(Family family, const Tensor& out, const Run& run) {
    context_.set_enabled(family, false);
    const std::vector<float> plain = result_of(out, run);
    context_.set_enabled(family, true);
    const std::vector<float> fast = result_of(out, run);
    double largest = 0;
    double difference = 0;
    for (size_t i = 0; i < plain.size(); ++i) {
      if (!std::isfinite(fast[i])) return false;
      largest = std::max(largest, std::fabs(double{plain[i]}));
      difference = std::max(difference, std::fabs(double{plain[i]} - double{fast[i]}));
    }
    return difference <= kLargestDifference * largest;
  }

 private:
  static constexpr int64_t kBytes = 16 << 20;
  // Drawing every number would take longer than the tests; a prime length repeats no row.
  static constexpr size_t kNumbers = 16381;

  template <typename Run>
  std::vector<float> result_of(const Tensor& out, const Run& run) {
    backend_.zero(out);
    run();
    std::vector<std::byte> bytes(static_cast<size_t>(out.num_bytes()));
    backend_.download(out, bytes);
    std::vector<float> values(static_cast<size_t>(out.num_elements()));
    dispatch_activation(out.dtype(), [&]<typename T>() {
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = to_float(reinterpret_cast<const T*>(bytes.data())[i]);
      }
    });
    return values;
  }

  Backend& backend_;
  CudaContext& context_;
  Arena arena_;
  std::array<float, kNumbers> numbers_{};
  size_t next_ = 0;
};

bool linear_agrees(Bench& bench, Family family, int64_t rows) {
  constexpr int64_t kIn = 512;
  constexpr int64_t kOut = 256;
  Backend& backend = bench.backend();
  for (const DType stored : {DType::bf16, DType::f8_e4m3}) {
    const LinearWeight weight{.parts = {bench.weight(stored, kOut, kIn)}};
    const Tensor x = bench.random(DType::bf16, {rows, kIn});
    const Tensor out = bench.zeros(DType::bf16, {rows, kOut});
    const Tensor gated = bench.zeros(DType::bf16, {rows, kOut / 2});
    const Tensor scratch = bench.zeros(DType::bf16, {rows, kOut});
    if (!bench.agrees(family, out, [&] { backend.linear(x, weight, out); })) return false;
    if (!bench.agrees(family, gated, [&] { backend.linear_silu_mul(x, weight, scratch, gated); })) {
      return false;
    }
  }
  return true;
}

bool w8a8_agrees(Bench& bench, int64_t rows) {
  constexpr int64_t kIn = 512;
  constexpr int64_t kOut = 256;
  Backend& backend = bench.backend();
  const LinearWeight weight{.parts = {bench.weight(DType::f8_e4m3, kOut, kIn)}};
  const Tensor x = bench.random(DType::bf16, {rows, kIn});
  const QuantizedActivations quantized{
      bench.zeros(DType::f8_e4m3, {rows, kIn}),
      bench.zeros(DType::f32, {kIn / kScaleBlock, (rows + 1) / 2 * 2})};
  const Tensor out = bench.zeros(DType::bf16, {rows, kOut});
  const Tensor gated = bench.zeros(DType::bf16, {rows, kOut / 2});
  const Tensor scratch = bench.zeros(DType::bf16, {rows, kOut});
  return bench.agrees(Family::gemm_w8a8, out, [&] { backend.linear(x, weight, out, quantized); }) &&
         bench.agrees(Family::gemm_w8a8, gated,
                      [&] { backend.linear_silu_mul(x, weight, scratch, gated, quantized); });
}

bool prefill_agrees(Bench& bench) {
  constexpr int32_t kQueries = 41;
  constexpr int64_t kHeads = 4;
  constexpr int64_t kKvHeads = 2;
  constexpr int64_t kHeadDim = 128;
  constexpr int32_t kContext = 77;
  for (const DType stored : {DType::bf16, DType::f8_e4m3}) {
    PagedKv kv;
    kv.keys = bench.random(stored, {3, kKvHeads, kKvPageTokens, kHeadDim});
    kv.values = bench.random(stored, {3, kKvHeads, kKvPageTokens, kHeadDim});
    if (stored == DType::f8_e4m3) {
      kv.key_scales = bench.random(DType::f32, {3, kKvHeads, kKvPageTokens});
      kv.value_scales = bench.random(DType::f32, {3, kKvHeads, kKvPageTokens});
    }
    PagedSpans spans;
    spans.query_begin = bench.integers({0, kQueries});
    spans.context_length = bench.integers({kContext});
    spans.page_table = bench.integers({2, 0, 1}).view({1, 3});
    spans.max_queries = kQueries;
    spans.max_context = kContext;
    const Tensor q = bench.random(DType::bf16, {kQueries, kHeads, kHeadDim});
    const Tensor out = bench.zeros(DType::bf16, {kQueries, kHeads, kHeadDim});
    if (!bench.agrees(Family::attention_prefill, out,
                      [&] { bench.backend().attend_paged(q, kv, spans, out); })) {
      return false;
    }
  }
  return true;
}

bool vision_attention_agrees(Bench& bench) {
  constexpr int64_t kRows = 83;
  constexpr int64_t kHeads = 2;
  constexpr int64_t kSegments[] = {0, 19, kRows};
  for (const int64_t head_dim : {64, 72, 128}) {
    const Tensor q = bench.random(DType::bf16, {kRows, kHeads, head_dim});
    const Tensor k = bench.random(DType::bf16, {kRows, kHeads, head_dim});
    const Tensor v = bench.random(DType::bf16, {kRows, kHeads, head_dim});
    const Tensor out = bench.zeros(DType::bf16, {kRows, kHeads, head_dim});
    if (!bench.agrees(Family::attention_vision, out,
                      [&] { bench.backend().attend_packed(q, k, v, kSegments, out); })) {
      return false;
    }
  }
  return true;
}

/// Two decoder layers for two sequences of one new token each.
class DecodeCase {
 public:
  static constexpr DecoderShape kShape = {.hidden_size = 512,
                                          .intermediate_size = 256,
                                          .num_heads = 4,
                                          .num_kv_heads = 2,
                                          .head_dim = 128};
  static constexpr int64_t kRows = 2;
  static constexpr int64_t kLayers = 2;

  DecodeCase(Bench& bench, DType stored) : bench_(bench) {
    const int64_t q_size = kShape.num_heads * kShape.head_dim;
    const int64_t qkv_size = q_size + 2 * kShape.num_kv_heads * kShape.head_dim;
    for (int64_t i = 0; i < kLayers; ++i) {
      DecoderLayerWeights layer;
      layer.input_layernorm = bench.random(DType::f32, {kShape.hidden_size});
      layer.qkv_proj.parts = {bench.weight(stored, qkv_size, kShape.hidden_size)};
      layer.q_norm = bench.random(DType::f32, {kShape.head_dim}, 0.3F);
      layer.k_norm = bench.random(DType::f32, {kShape.head_dim}, 0.3F);
      layer.o_proj.parts = {bench.weight(stored, kShape.hidden_size, q_size)};
      layer.post_attention_layernorm = bench.random(DType::f32, {kShape.hidden_size});
      layer.gate_up_proj.parts = {
          bench.weight(stored, 2 * kShape.intermediate_size, kShape.hidden_size)};
      layer.down_proj.parts = {bench.weight(stored, kShape.hidden_size, kShape.intermediate_size)};
      layers_.push_back(layer);
      const auto pages = [&] {
        return bench.random(DType::bf16, {4, kShape.num_kv_heads, kKvPageTokens, kShape.head_dim});
      };
      const Tensor keys = pages();
      kv_.push_back({keys, pages(), {}, {}});
    }
    act_.hidden = bench.zeros(DType::f32, {kRows, kShape.hidden_size});
    act_.normed = bench.zeros(DType::bf16, {kRows, kShape.hidden_size});
    act_.qkv = bench.zeros(DType::bf16, {kRows, qkv_size});
    act_.attended = bench.zeros(DType::bf16, {kRows, q_size});
    act_.gate_up = bench.zeros(DType::bf16, {kRows, 2 * kShape.intermediate_size});
    act_.intermediate = bench.zeros(DType::bf16, {kRows, kShape.intermediate_size});
    start_ = bench.random(DType::f32, {kRows, kShape.hidden_size});
    inputs_.cosines = bench.random(DType::f32, {kRows, kShape.head_dim / 2}, 0.5F);
    inputs_.sines = bench.random(DType::f32, {kRows, kShape.head_dim / 2}, 0.5F);
    inputs_.slots = bench.integers({69, 3 * kKvPageTokens + 4});
    inputs_.spans.query_begin = bench.integers({0, 1, 2});
    inputs_.spans.context_length = bench.integers({70, 5});
    inputs_.spans.page_table = bench.integers({0, 1, 2, 3, 3, 3}).view({2, 3});
    inputs_.spans.max_queries = 1;
    inputs_.spans.max_context = 70;
    inputs_.kv = kv_;
  }

  [[nodiscard]] bool agrees() {
    return bench_.agrees(Family::attention_decode, act_.hidden, [&] {
      bench_.backend().copy(start_, act_.hidden);
      bench_.backend().decoder_layers(kShape, layers_, inputs_, act_);
    });
  }

 private:
  Bench& bench_;
  std::vector<DecoderLayerWeights> layers_;
  std::vector<PagedKv> kv_;
  DecoderActivations act_;
  DecoderInputs inputs_;
  Tensor start_;
};

bool family_agrees(Bench& bench, Family family) {
  switch (family) {
    case Family::gemm:
      return linear_agrees(bench, family, 70);
    case Family::gemv:
      return linear_agrees(bench, family, 2);
    case Family::attention_prefill:
      return prefill_agrees(bench);
    case Family::attention_decode:
      return DecodeCase(bench, DType::bf16).agrees() && DecodeCase(bench, DType::f8_e4m3).agrees();
    case Family::attention_vision:
      return vision_attention_agrees(bench);
    case Family::gemm_w8a8:
      return w8a8_agrees(bench, 3) && w8a8_agrees(bench, 70);
  }
  return true;
}

}  // namespace

std::vector<Family> find_failing_families(Backend& backend, CudaContext& context) {
  std::vector<Family> failing;
  for (int i = 0; i < kNumFamilies; ++i) {
    const auto family = static_cast<Family>(i);
    if (!context.uses(family)) continue;
    Bench bench(backend, context);
    bool agrees = false;
    try {
      agrees = family_agrees(bench, family);
    } catch (const Error&) {
      // A launch that is refused is a failure too; an error that outlives it stops the next call.
      cudaGetLastError();
    }
    context.set_enabled(family, true);
    if (!agrees) failing.push_back(family);
  }
  return failing;
}

std::vector<std::string> apply_self_test(Backend& backend, CudaContext& context) {
  const std::filesystem::path file = outcome_file();
  const std::string key = outcome_key(context.card().name, context.card().driver_version);
  std::optional<std::vector<Family>> failing = read_outcome(file, key);
  if (!failing) {
    failing = find_failing_families(backend, context);
    write_outcome(file, key, *failing);
  }
  std::vector<std::string> warnings;
  for (const Family family : *failing) {
    context.set_enabled(family, false);
    warnings.push_back(
        fmt::format("the {} kernels gave wrong results on {} in their self-test: plain, slower "
                    "ones are used; please report this with `glimpse doctor`",
                    name_of(family), context.card().name));
  }
  return warnings;
}

}  // namespace glimpse::cuda
