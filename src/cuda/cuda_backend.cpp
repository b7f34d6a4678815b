// The CUDA backend: turns Tensors into the arguments of kernels.h and picks kernels. Everything
// runs in order on one stream.
#include "cuda/cuda_backend.h"

#include <fmt/format.h>

#include "cuda/cuda_attention.h"
#include "cuda/cuda_context.h"
#include "cuda/cuda_decode.h"
#include "cuda/cuda_linear.h"
#include "cuda/graph_cache.h"
#include "cuda/mark_ring.h"
#include "cuda/prepare_weights.h"
#include "cuda/self_test.h"
#include "cuda/staging_ring.h"

namespace glimpse {
namespace cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CardInfo& card, const CudaOptions& options)
      : before_(read_memory(card.device)),
        context_(card, options.plain_kernels_only),
        ring_(context_.stream()),
        graphs_(context_.stream()),
        marks_(context_.stream()) {
    if (!options.plain_kernels_only) warnings_ = apply_self_test(*this, context_);
    use_early_stream();
    if (before_) own_bytes_ = before_->free_bytes - memory().free_bytes;
  }
  ~CudaBackend() override {
    try {
      context_.make_current();
    } catch (const Error&) {
      // The card is gone: what follows fails as quietly.
    }
  }

  [[nodiscard]] Device device() const override { return Device::cuda; }
  [[nodiscard]] std::string description() const override {
    const CardInfo& card = context_.card();
    return fmt::format("cuda:{} ({}, sm_{}{})", card.device, card.name, card.major, card.minor);
  }

  [[nodiscard]] std::vector<std::string> warnings() const override { return warnings_; }
  [[nodiscard]] DeviceMemory memory() const override {
    context_.make_current();
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    require(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory");
    return {static_cast<int64_t>(total_bytes), static_cast<int64_t>(free_bytes), own_bytes_};
  }
  [[nodiscard]] Buffer allocate(int64_t num_bytes, std::string_view name) override {
    return context_.allocate(num_bytes, name);
  }
  void upload(std::span<const std::byte> bytes, Tensor to) override {
    check(to.is_contiguous() && static_cast<int64_t>(bytes.size()) == to.num_bytes(),
          "upload: the sizes differ");
    needs_host();
    ring_.upload(bytes, to.raw());
  }
  void upload_early(std::span<const std::byte> bytes, Tensor to) override {
    check(to.is_contiguous() && static_cast<int64_t>(bytes.size()) == to.num_bytes(),
          "upload_early: the sizes differ");
    needs_host();
    ring_.upload_early(bytes, to.raw());
  }
  void download(Tensor from, std::span<std::byte> bytes) override {
    check(from.is_contiguous() && static_cast<int64_t>(bytes.size()) == from.num_bytes(),
          "download: the sizes differ");
    needs_host();
    ring_.download(from.raw(), bytes);
  }
  void zero(Tensor tensor) override {
    check(tensor.is_contiguous(), "zero: the tensor is not contiguous");
    if (tensor.num_bytes() == 0) return;
    context_.make_current();
    require(cudaMemsetAsync(tensor.raw(), 0, static_cast<size_t>(tensor.num_bytes()), stream()),
            "zero()");
  }
  void synchronize() override {
    needs_host();
    require(cudaStreamSynchronize(stream()), "waiting for the GPU");
  }
  [[nodiscard]] Buffer allocate_shared(int64_t num_bytes, std::string_view name) override;
  [[nodiscard]] Mark mark() override {
    needs_host();
    return marks_.set();
  }
  void wait(Mark mark) override {
    needs_host();
    marks_.wait(mark);
  }
  void replay(uint64_t key, const std::function<void()>& step) override {
    context_.make_current();
    graphs_.replay(key, step);
  }

  [[nodiscard]] LinearWeight prepare(std::span<const LinearPart> parts, LinearLayout,
                                     Arena& arena) override {
    needs_host();
    return prepare_linear(parts, arena, ring_);
  }
  [[nodiscard]] Tensor prepare(Tensor host, DType dtype, Arena& arena) override {
    needs_host();
    return prepare_table(host, dtype, arena, ring_);
  }

 protected:
  void do_copy(Tensor from, Tensor to) override;
  void do_gather_rows(Tensor table, Tensor indices, Tensor out) override {
    move_rows(RowMove::gather, table, indices, out);
  }
  void do_begin_step(const StepBeginning& from, Tensor hidden, Tensor cosines,
                     Tensor sines) override;
  void do_scatter_rows(Tensor rows, Tensor indices, Tensor out) override {
    move_rows(RowMove::scatter, rows, indices, out);
  }
  void do_add_rows(Tensor rows, Tensor indices, Tensor out) override {
    move_rows(RowMove::add, rows, indices, out);
  }
  void do_add(Tensor a, Tensor b, Tensor out) override {
    elementwise({.operation = Elementwise::add, .b = rows_of(b)}, a, out);
  }
  void do_blend_rows(Tensor table, Tensor indices, Tensor weights, Tensor out) override;
  void do_cut_patches(Tensor pixels, Tensor table, const PatchOrder& order, Tensor out) override;
  void do_linear(Tensor x, const LinearWeight& weight, Tensor out,
                 const QuantizedActivations& quantized) override {
    context_.make_current();
    run_linear(context_, x, weight, quantized, LinearMode::store, out);
  }
  void do_linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                     const QuantizedActivations& quantized) override {
    context_.make_current();
    run_linear(context_, x, weight, quantized, LinearMode::add, out);
  }
  void do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch, Tensor out,
                          const QuantizedActivations& quantized) override {
    context_.make_current();
    run_linear_silu_mul(context_, x, gate_up, quantized, scratch, out);
  }
  void do_linear_gelu(Tensor x, const LinearWeight& weight, GeluKind kind, Tensor out) override {
    context_.make_current();
    const bool is_tanh = kind == GeluKind::tanh_approximation;
    if (is_tanh && try_linear_gelu_tanh(context_, x, weight, out)) return;
    Backend::do_linear_gelu(x, weight, kind, out);
  }
  void do_linear_rotate(Tensor x, const LinearWeight& weight, const HeadRotation& rotation,
                        Tensor out) override {
    context_.make_current();
    if (try_linear_rotate(context_, x, weight, rotation, out)) return;
    Backend::do_linear_rotate(x, weight, rotation, out);
  }
  void do_rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out) override {
    norm({.epsilon = epsilon}, x, weight, out);
  }
  void do_rms_norm_rows(Tensor x, Tensor indices, Tensor weight, float epsilon,
                        Tensor out) override {
    norm({.indices = indices.data<int32_t>(), .epsilon = epsilon}, x, weight, out);
  }
  void do_layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon, Tensor out) override {
    norm({.bias = bias.data<float>(), .epsilon = epsilon}, x, weight, out);
  }
  void do_silu_mul(Tensor gate_up, Tensor out) override {
    context_.make_current();
    run_silu_mul(context_, gate_up, out);
  }
  void do_gelu(Tensor x, GeluKind kind, Tensor out) override {
    const bool is_tanh = kind == GeluKind::tanh_approximation;
    elementwise({.operation = is_tanh ? Elementwise::gelu_tanh : Elementwise::gelu_erf}, x, out);
  }
  void do_rotary_table(Tensor positions, Tensor inverse_frequencies, Tensor axes, Tensor cosines,
                       Tensor sines) override;
  void do_rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) override;
  void do_store_kv(Tensor k, Tensor v, Tensor slots, const PagedKv& kv) override;
  void do_attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans, Tensor out) override {
    context_.make_current();
    run_attend_paged(context_, q, kv, spans, out);
  }
  void do_attend_packed(Tensor q, Tensor k, Tensor v, std::span<const int64_t> segment_begin,
                        Tensor out) override {
    context_.make_current();
    run_attend_packed(context_, q, k, v, segment_begin, out);
  }
  void do_sample(Tensor logits, const SamplingRows& rows, Tensor ids, Tensor log_probs,
                 Tensor reported_ids) override;
  void do_top_log_probs(Tensor logits, Tensor ids, Tensor log_probs) override;
  void do_count_tokens(Tensor ids, Tensor line, Tensor counts) override;
  void do_decoder_layers(const DecoderShape& shape, std::span<const DecoderLayerWeights> layers,
                         const DecoderInputs& inputs, const DecoderActivations& act,
                         const TraceFunction& trace) override {
    context_.make_current();
    if (!trace && run_decode_layers(context_, shape, layers, inputs, act)) return;
    Backend::do_decoder_layers(shape, layers, inputs, act, trace);
  }

 private:
  [[nodiscard]] cudaStream_t stream() const { return context_.stream(); }
  /// Operations that wait for the host or for the card cannot be part of a recorded step.
  void needs_host() const {
    if (graphs_.is_recording()) throw NotRecordable{};
    context_.make_current();
  }
  /// A stream takes its memory when it is first used; what the backend takes is counted before.
  void use_early_stream() {
    const uint32_t zero = 0;
    ring_.upload_early(std::as_bytes(std::span(&zero, 1)),
                       static_cast<std::byte*>(context_.sampling_workspace()));
    synchronize();
  }
  void elementwise(ElementwiseArguments arguments, const Tensor& a, const Tensor& out);
  void move_rows(RowMove move, const Tensor& from, const Tensor& indices, const Tensor& out);
  void norm(NormArguments arguments, const Tensor& x, const Tensor& weight, const Tensor& out);
  [[nodiscard]] RotaryTableArguments rotary_of(const Tensor& positions,
                                               const Tensor& inverse_frequencies,
                                               const Tensor& axes, const Tensor& cosines,
                                               const Tensor& sines) const;

  std::optional<CardMemory> before_;  // read before the context is made
  int64_t own_bytes_ = 0;             // 0: unknown
  std::vector<std::string> warnings_;
  CudaContext context_;
  StagingRing ring_;
  GraphCache graphs_;
  MarkRing marks_;
  int64_t shared_bytes_used_ = 0;
};

// Part of the ring's pinned memory, which lives as long as the backend.
Buffer CudaBackend::allocate_shared(int64_t num_bytes, std::string_view name) {
  static_assert(kMaxSharedBytes == StagingRing::kSharedBytes);
  const int64_t first = shared_bytes_used_;
  const int64_t rounded = (num_bytes + Arena::kAlignment - 1) / Arena::kAlignment;
  shared_bytes_used_ += rounded * Arena::kAlignment;
  check(shared_bytes_used_ <= kMaxSharedBytes,
        fmt::format("no shared memory is left for {}", name));
  return {ring_.shared() + first, num_bytes, Device::cuda, [](std::byte*) {}};
}

void CudaBackend::elementwise(ElementwiseArguments arguments, const Tensor& a, const Tensor& out) {
  context_.make_current();
  arguments.a = rows_of(a);
  arguments.out = rows_of(out);
  arguments.num_rows = out.num_rows();
  arguments.dim = out.size(-1);
  require(launch_elementwise(arguments, context_.launch_stream()), "an elementwise kernel");
}

void CudaBackend::move_rows(RowMove move, const Tensor& from, const Tensor& indices,
                            const Tensor& out) {
  context_.make_current();
  require(launch_move_rows({.move = move,
                            .from = rows_of(from),
                            .indices = indices.data<int32_t>(),
                            .out = rows_of(out),
                            .count = indices.size(0),
                            .dim = out.size(1)},
                           context_.launch_stream()),
          "the kernel that gathers and scatters rows");
}

void CudaBackend::norm(NormArguments arguments, const Tensor& x, const Tensor& weight,
                       const Tensor& out) {
  context_.make_current();
  arguments.x = rows_of(x);
  arguments.weight = weight.data<float>();
  arguments.out = rows_of(out);
  arguments.num_rows = out.num_rows();
  arguments.dim = x.size(-1);
  // Norms of chosen rows stand in recorded steps, behind kernels that are not overlapped.
  const LaunchStream on =
      arguments.indices != nullptr ? LaunchStream(stream()) : context_.launch_stream();
  require(launch_norm(arguments, on), "the kernel of the norms");
}

void CudaBackend::do_begin_step(const StepBeginning& from, Tensor hidden, Tensor cosines,
                                Tensor sines) {
  context_.make_current();
  require(launch_begin_step({.table = rows_of(from.table),
                             .ids = from.ids.data<int32_t>(),
                             .chosen = pointer_of<int32_t>(from.chosen),
                             .hidden = rows_of(hidden),
                             .dim = hidden.size(1),
                             .rotary = rotary_of(from.positions, from.inverse_frequencies,
                                                 from.axes, cosines, sines)},
                            stream()),
          "the kernel of begin_step()");
}

void CudaBackend::do_copy(Tensor from, Tensor to) {
  context_.make_current();
  if (from.dtype() != to.dtype()) {
    elementwise({.operation = Elementwise::convert}, from, to);
    return;
  }
  if (from.rank() == 3) {  // the only rank whose outer strides may be uneven
    for (int64_t head = 0; head < from.size(1); ++head) {
      const auto of_head = [&](const Tensor& x) {
        const Tensor one = x.slice(1, head, 1);  // its second dimension carries no stride
        return one;
      };
      const Tensor source = of_head(from);
      const Tensor target = of_head(to);
      const auto item = static_cast<size_t>(bytes_of(from.dtype()));
      require(
          cudaMemcpy2DAsync(target.raw(), static_cast<size_t>(target.row_stride()) * item,
                            source.raw(), static_cast<size_t>(source.row_stride()) * item,
                            static_cast<size_t>(from.size(2)) * item,
                            static_cast<size_t>(from.size(0)), cudaMemcpyDeviceToDevice, stream()),
          "copy()");
    }
    return;
  }
  const auto item = static_cast<size_t>(bytes_of(from.dtype()));
  require(
      cudaMemcpy2DAsync(to.raw(), static_cast<size_t>(to.row_stride()) * item, from.raw(),
                        static_cast<size_t>(from.row_stride()) * item,
                        static_cast<size_t>(from.size(-1)) * item,
                        static_cast<size_t>(from.num_rows()), cudaMemcpyDeviceToDevice, stream()),
      "copy()");
}

void CudaBackend::do_blend_rows(Tensor table, Tensor indices, Tensor weights, Tensor out) {
  context_.make_current();
  require(launch_blend_rows({.table = rows_of(table),
                             .indices = indices.data<int32_t>(),
                             .weights = weights.data<float>(),
                             .out = rows_of(out),
                             .count = out.size(0),
                             .dim = out.size(1)},
                            context_.launch_stream()),
          "the kernel of blend_rows()");
}

void CudaBackend::do_cut_patches(Tensor pixels, Tensor table, const PatchOrder& order, Tensor out) {
  context_.make_current();
  require(launch_cut_patches({.pixels = pixels.data<uint8_t>(),
                              .num_frames = pixels.size(0),
                              .height = pixels.size(1),
                              .width = pixels.size(2),
                              .table = table.data<float>(),
                              .side = order.side,
                              .merge = order.merge,
                              .frames = order.frames,
                              .first = order.first,
                              .out = rows_of(out),
                              .count = out.size(0)},
                             context_.launch_stream()),
          "the kernel of cut_patches()");
}

RotaryTableArguments CudaBackend::rotary_of(const Tensor& positions,
                                            const Tensor& inverse_frequencies, const Tensor& axes,
                                            const Tensor& cosines, const Tensor& sines) const {
  return {.positions = positions.data<int32_t>(),
          .axis_stride = positions.row_stride(),
          .inverse_frequencies = inverse_frequencies.data<float>(),
          .axes = axes.data<int32_t>(),
          .cosines = cosines.data<float>(),
          .sines = sines.data<float>(),
          .cosine_stride = cosines.row_stride(),
          .sine_stride = sines.row_stride(),
          .tokens = cosines.size(0),
          .half = cosines.size(1)};
}

void CudaBackend::do_rotary_table(Tensor positions, Tensor inverse_frequencies, Tensor axes,
                                  Tensor cosines, Tensor sines) {
  context_.make_current();
  require(launch_rotary_table(rotary_of(positions, inverse_frequencies, axes, cosines, sines),
                              context_.launch_stream()),
          "the kernel of rotary_table()");
}

void CudaBackend::do_rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) {
  context_.make_current();
  require(launch_rotate({.x = rows_of(x),
                         .cosines = cosines.data<float>(),
                         .sines = sines.data<float>(),
                         .cosine_stride = cosines.row_stride(),
                         .sine_stride = sines.row_stride(),
                         .out = rows_of(out),
                         .tokens = x.size(0),
                         .half = x.size(2) / 2},
                        context_.launch_stream()),
          "the kernel of rotate()");
}

void CudaBackend::do_store_kv(Tensor k, Tensor v, Tensor slots, const PagedKv& kv) {
  context_.make_current();
  require(launch_store_kv({.k = rows_of(k),
                           .v = rows_of(v),
                           .slots = slots.data<int32_t>(),
                           .kv = pages_of(kv),
                           .tokens = k.size(0)},
                          context_.launch_stream()),
          "the kernel of store_kv()");
}

void CudaBackend::do_sample(Tensor logits, const SamplingRows& rows, Tensor ids, Tensor log_probs,
                            Tensor reported_ids) {
  context_.make_current();
  for (int64_t first = 0; first < logits.size(0); first += kMaxSamplingRows) {
    const int64_t count = std::min(kMaxSamplingRows, logits.size(0) - first);
    const auto part = [&]<typename T>(const Tensor& x, T*) { return x.data<T>() + first; };
    constexpr float* kFloats = nullptr;
    constexpr int32_t* kInts = nullptr;
    const SampleArguments arguments{
        .logits = logits.slice(0, first, count).data<float>(),
        .logits_stride = logits.row_stride(),
        .rows = count,
        .vocab = logits.size(1),
        .temperature = part(rows.temperature, kFloats),
        .top_k = part(rows.top_k, kInts),
        .top_p = part(rows.top_p, kFloats),
        .min_p = part(rows.min_p, kFloats),
        .uniform = part(rows.uniform, kFloats),
        .repetition_penalty = part(rows.repetition_penalty, kFloats),
        .presence_penalty = part(rows.presence_penalty, kFloats),
        .frequency_penalty = part(rows.frequency_penalty, kFloats),
        .counts_row = part(rows.counts_row, kInts),
        .token_counts = pointer_of<uint16_t>(rows.token_counts),
        .counts_stride = rows.token_counts.empty() ? 0 : rows.token_counts.row_stride(),
        .mask_row = part(rows.mask_row, kInts),
        .allowed = pointer_of<uint32_t>(rows.allowed),
        .allowed_stride = rows.allowed.empty() ? 0 : rows.allowed.row_stride(),
        .all_greedy = rows.all_greedy,
        .ids = part(ids, kInts),
        .log_probs = part(log_probs, kFloats),
        .reported_ids = reported_ids.empty() ? nullptr : part(reported_ids, kInts),
        .workspace = context_.sampling_workspace()};
    require(launch_sample(arguments, stream()), "the kernels of sample()");
  }
}

void CudaBackend::do_top_log_probs(Tensor logits, Tensor ids, Tensor log_probs) {
  context_.make_current();
  require(launch_top_log_probs({.logits = logits.data<float>(),
                                .logits_stride = logits.row_stride(),
                                .rows = logits.size(0),
                                .vocab = logits.size(1),
                                .count = ids.size(1),
                                .ids = ids.data<int32_t>(),
                                .log_probs = log_probs.data<float>(),
                                .ids_stride = ids.row_stride(),
                                .log_probs_stride = log_probs.row_stride()},
                               stream()),
          "the kernel of top_log_probs()");
}

void CudaBackend::do_count_tokens(Tensor ids, Tensor line, Tensor counts) {
  context_.make_current();
  require(launch_count_tokens({.ids = ids.data<int32_t>(),
                               .line = line.data<int32_t>(),
                               .counts = counts.data<uint16_t>(),
                               .counts_stride = counts.row_stride(),
                               .rows = ids.size(0)},
                              stream()),
          "the kernel of count_tokens()");
}

}  // namespace
}  // namespace cuda

std::unique_ptr<Backend> create_cuda_backend(int device, const CudaOptions& options) {
  if (const std::string reason = why_no_cuda(device); !reason.empty()) {
    throw Error(ErrorCode::device, reason, "use --device cpu, or `glimpse doctor` for what to do");
  }
  return std::make_unique<cuda::CudaBackend>(cuda::read_card(device), options);
}

}  // namespace glimpse
