// Every operation of the model, once: its formula, its shapes, its dtypes. The public functions
// check shapes and dtypes and then call the protected virtual of the same name, so a backend never
// checks and a caller never guesses. src/cpu/reference.cpp is the executable specification.
//
// Conventions: row-major; the innermost stride of every tensor is 1; all outer dimensions together
// have one even stride (Tensor::as_rows), except that [tokens, heads, dim] may have a stride of its
// own for tokens: heads inside a fused projection. "activation" means f32 or bf16. Sums, means and
// softmax are taken in f32 whatever the dtype. Unless said otherwise an output may alias an input
// of the same shape and dtype exactly, and must not overlap it otherwise.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/arena.h"
#include "tensor/linear_weight.h"
#include "tensor/tensor.h"

namespace glimpse {

/// Tokens of one KV page.
inline constexpr int64_t kKvPageTokens = 32;

/// Keys and values of one layer, in pages that belong to any sequence.
struct PagedKv {
  Tensor keys;          // [num_pages, num_kv_heads, kKvPageTokens, head_dim] f32, bf16 or f8_e4m3
  Tensor values;        // the same
  Tensor key_scales;    // [num_pages, num_kv_heads, kKvPageTokens] f32, only with f8_e4m3:
  Tensor value_scales;  // one factor per page, head and token; stored value = f8 * scale
};

/// Which queries of a batch belong to which sequence, and where its keys are. Device tensors, so
/// that a captured graph sees each step's contents; the host numbers bound the launch.
struct PagedSpans {
  Tensor query_begin;     // [num_sequences + 1] i32: first query row of each sequence, and the end
  Tensor context_length;  // [num_sequences] i32: tokens in the cache, this step's included
  Tensor page_table;      // [num_sequences, max_pages] i32
  int64_t max_queries = 0;  // upper bound of one sequence's query rows
  int64_t max_context = 0;  // upper bound of context_length
};

/// How each row of logits becomes a token. Device tensors of fixed size; see Backend::sample().
struct SamplingRows {
  Tensor temperature;         // [rows] f32; 0 takes the most likely token (the lowest id of equals)
  Tensor top_k;               // [rows] i32; 0 keeps all
  Tensor top_p;               // [rows] f32; 1 keeps all
  Tensor min_p;               // [rows] f32; 0 keeps all
  Tensor uniform;             // [rows] f32 in [0, 1): the draw, made from the request's seed
  Tensor repetition_penalty;  // [rows] f32; 1 is off
  Tensor presence_penalty;    // [rows] f32; 0 is off
  Tensor frequency_penalty;   // [rows] f32; 0 is off
  Tensor counts_row;          // [rows] i32: this row's line in token_counts; -1: no penalties
  Tensor token_counts;        // [lines, vocab] u16: bit 15 = stands in the prompt, bits 0..14 =
                              // times generated
  Tensor mask_row;            // [rows] i32: this row's line in allowed; -1: everything is allowed
  Tensor allowed;             // [lines, ceil(vocab / 32)] u32: bit t % 32 of word t / 32 allows t
  bool all_greedy = false;    // the host knows that every temperature is 0
};

/// How a picture is cut into patches of side x side pixels, which stand in blocks of merge x merge:
/// rows of blocks, the blocks of a row, then the rows and columns of a block.
struct PatchOrder {
  int64_t side = 0;
  int64_t merge = 0;
  int64_t frames = 0;  // of one patch, one behind the other
  int64_t first = 0;   // the patch that becomes row 0
};

/// Room for activations that are rounded to FP8 before FP8 weights multiply them (W8A8). Such a
/// linear() leaves there what x became: codes, and one factor for each row and 128 columns.
struct QuantizedActivations {
  Tensor codes;   // [at least T, at least in] f8_e4m3
  Tensor scales;  // [at least ceil(in / 128), at least T] f32: a row for each 128 columns

  [[nodiscard]] bool empty() const { return codes.empty(); }
};

/// What a step's first operation reads.
struct StepBeginning {
  Tensor table;                // [entries, hidden] f32, f16, bf16: embeddings of tokens
  Tensor ids;                  // [T] i32; -1 - i stands for chosen[i]
  Tensor chosen;               // [n] i32: what sample() chose last; empty where no id is negative
  Tensor positions;            // [num_axes, T] i32, and what else rotary_table() reads:
  Tensor inverse_frequencies;  // [half] f32
  Tensor axes;                 // [half] i32
};

enum class GeluKind { tanh_approximation, exact_erf };

/// The first heads of a fused projection, and by what they are turned.
struct HeadRotation {
  Tensor cosines;  // [T, head_dim / 2] f32
  Tensor sines;    // the same
  int64_t num_heads = 0;

  /// [T, num_heads, head_dim], of a projection [T, at least num_heads * head_dim].
  [[nodiscard]] Tensor heads_of(const Tensor& projection) const {
    return projection.slice(1, 0, num_heads * 2 * cosines.size(1)).split_last(num_heads);
  }
};

/// How Backend::prepare() may lay out a weight.
enum class LinearLayout {
  plain,    // for linear()
  gate_up,  // the first half of the rows is the gate, the second the up projection: for
            // linear_silu_mul()
};

/// One decoder layer's weights.
struct DecoderLayerWeights {
  Tensor input_layernorm;           // [hidden] f32
  LinearWeight qkv_proj;            // [(num_heads + 2 num_kv_heads) * head_dim, hidden]
  Tensor q_norm;                    // [head_dim] f32; empty in models without it
  Tensor k_norm;                    // [head_dim] f32
  LinearWeight o_proj;              // [hidden, num_heads * head_dim]
  Tensor post_attention_layernorm;  // [hidden] f32
  LinearWeight gate_up_proj;        // [2 * intermediate, hidden], prepared as gate_up
  LinearWeight down_proj;           // [hidden, intermediate]
};

/// The numbers that the layers of one model share.
struct DecoderShape {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  float rms_norm_eps = 1e-6F;
};

/// Picture rows of a batch: hidden[rows[i]] += deepstack[layer][i] after the first layers.
struct DeepstackRows {
  Tensor rows;                    // [n] i32: rows of the batch
  std::vector<Tensor> deepstack;  // one [n, hidden] activation per injected layer
};

/// Activations of one pass through the decoder; T = rows of the batch. normed and attended may
/// share memory, and so may qkv and intermediate: neither pair is alive at once.
struct DecoderActivations {
  Tensor hidden;                   // [T, hidden] f32: the residual stream
  Tensor normed;                   // [T, hidden] activation
  Tensor qkv;                      // [T, (num_heads + 2 num_kv_heads) * head_dim] activation
  Tensor attended;                 // [T, num_heads * head_dim] activation
  Tensor gate_up;                  // [S, 2 * intermediate] activation; scratch of linear_silu_mul()
  Tensor intermediate;             // [T, intermediate] activation
  QuantizedActivations quantized;  // for the widest product; empty unless W8A8 is asked
};

/// What a pass reads besides weights and activations.
struct DecoderInputs {
  Tensor cosines;  // [T, head_dim / 2] f32
  Tensor sines;    // [T, head_dim / 2] f32
  Tensor slots;    // [T] i32: page * kKvPageTokens + offset, where each row's k and v are stored
  PagedSpans spans;
  std::span<const PagedKv> kv;                    // one per layer
  std::span<const DeepstackRows> deepstack = {};  // one per picture piece in the batch
};

/// Sees intermediate tensors by name ("text.layer.3"); used by tests and --trace only.
using TraceFunction = std::function<void(std::string_view name, int64_t index, Tensor value)>;

/// Device memory as the driver sees it, other programs' share included. All zero: host memory,
/// which is not limited.
struct DeviceMemory {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
  int64_t own_bytes = 0;  // what the backend took when it was made: context, kernels, workspaces
};

/// Runs operations in order on one device. One thread at a time. Calls may return before the work
/// is done: download() and synchronize() wait. Throws Error(device) when the device fails and
/// Error(out_of_memory) from allocate().
class Backend {
 public:
  virtual ~Backend() = default;

  [[nodiscard]] virtual Device device() const = 0;
  /// "cpu (AVX-512 BF16, 2 threads)", "cuda:0 (NVIDIA GeForce RTX 5060, sm_120)".
  [[nodiscard]] virtual std::string description() const = 0;

  /// Sentences for the user, such as kernels that failed their self-test and are not used.
  [[nodiscard]] virtual std::vector<std::string> warnings() const { return {}; }

  // ---- memory -------------------------------------------------------------------------------
  [[nodiscard]] virtual DeviceMemory memory() const { return {}; }
  /// `name` is the planner's word for it and appears in the error when memory is short.
  [[nodiscard]] virtual Buffer allocate(int64_t num_bytes, std::string_view name) = 0;
  /// Host to device. `to` is contiguous and of bytes.size() bytes. The source may be reused when
  /// the call returns.
  virtual void upload(std::span<const std::byte> bytes, Tensor to) = 0;
  /// The same, beside the work that is under way instead of behind it, which must not use `to`.
  virtual void upload_early(std::span<const std::byte> bytes, Tensor to) { upload(bytes, to); }
  /// Device to host; waits for all earlier work.
  virtual void download(Tensor from, std::span<std::byte> bytes) = 0;
  /// Device to device, same shape; converts between f32 and bf16 where the dtypes differ.
  void copy(Tensor from, Tensor to);
  /// All bytes of a contiguous tensor become 0.
  virtual void zero(Tensor tensor) = 0;
  virtual void synchronize() = 0;

  /// Memory that operations write and the host then reads where it is, without a copy; at most
  /// kMaxSharedBytes of one backend. Operations should not read it: that is slow.
  [[nodiscard]] virtual Buffer allocate_shared(int64_t num_bytes, std::string_view name) {
    return allocate(num_bytes, name);
  }
  static constexpr int64_t kMaxSharedBytes = int64_t{384} << 10;
  /// A point in the order of operations. Of earlier ones the last kMaxMarks are remembered.
  using Mark = uint64_t;
  static constexpr Mark kMaxMarks = 4;
  [[nodiscard]] virtual Mark mark() { return 0; }
  /// Returns when all that was issued before mark() is done, whatever was issued since.
  virtual void wait(Mark mark) { (void)mark; }

  /// Runs `step`, which issues operations whose shapes and addresses depend on `key` alone. A GPU
  /// records them once per key and replays the recording afterwards.
  virtual void replay(uint64_t key, const std::function<void()>& step) { (void)key, step(); }

  // ---- weights ------------------------------------------------------------------------------
  /// Makes a weight ready for this backend: parts are mapped host memory. Memory comes from
  /// `arena` (not used by a backend that works on the mapped file). With a measuring arena nothing
  /// is copied and only the layout and its bytes are right.
  [[nodiscard]] virtual LinearWeight prepare(std::span<const LinearPart> parts, LinearLayout layout,
                                             Arena& arena) = 0;
  /// The same for a table or vector (embeddings, norm weights, biases): `host` in device memory,
  /// converted to `dtype`.
  [[nodiscard]] virtual Tensor prepare(Tensor host, DType dtype, Arena& arena) = 0;

  // ---- rows ---------------------------------------------------------------------------------
  /// out[i] = table[indices[i]], converted to out's dtype.
  ///   table [entries, dim] f32, f16, bf16   indices [n] i32   out [n, dim] activation
  void gather_rows(Tensor table, Tensor indices, Tensor out);
  /// hidden[i] = table[ids[i]], with the token chosen last where the id is negative, and the
  /// cosines and sines of rotary_table(): all that the layers of a text need.
  ///   hidden [T, hidden] f32   cosines, sines [T, half] f32
  void begin_step(const StepBeginning& from, Tensor hidden, Tensor cosines, Tensor sines);
  /// out[indices[i]] = rows[i], converted. Indices are distinct.
  ///   rows [n, dim] activation   indices [n] i32   out [any, dim] activation
  void scatter_rows(Tensor rows, Tensor indices, Tensor out);
  /// out[indices[i]] += rows[i]. Indices are distinct.
  ///   rows [n, dim] activation   indices [n] i32   out [any, dim] activation
  void add_rows(Tensor rows, Tensor indices, Tensor out);
  /// out = a + b, elementwise in f32.      a, b, out: same shape, activation
  void add(Tensor a, Tensor b, Tensor out);
  /// out[i] += sum over c of weights[i, c] * table[indices[i, c]], c = 0..3 in order.
  ///   table [entries, dim] f32 or bf16   indices [n, 4] i32   weights [n, 4] f32
  ///   out [n, dim] activation
  void blend_rows(Tensor table, Tensor indices, Tensor weights, Tensor out);

  // ---- pictures -----------------------------------------------------------------------------
  /// Rows first, first + 1, ... of a picture's patches, each byte replaced by what its channel's
  /// line of the table says (rescaled and normalised). Patch p of slice s (slices follow one
  /// another) with its corner at (top, left):
  ///   out[p, ((c * frames + t) * side + y) * side + x]
  ///       = table[c, pixels[min(s * frames + t, n - 1), top + y, left + x, c]]
  /// so that the last frame stands for those that are missing: a still is n = 1.
  ///   pixels [n, height, width, 3] u8, sides multiples of side * merge, contiguous
  ///   table [3, 256] f32   out [rows, 3 * frames * side * side] activation
  void cut_patches(Tensor pixels, Tensor table, const PatchOrder& order, Tensor out);

  // ---- linear -------------------------------------------------------------------------------
  /// out = x W^T + bias.   x [T, in] activation   W [out, in]   out [T, out] activation
  /// x in f32 computes in f32 (FP8 times scale in f32); x in bf16 multiplies bf16 operands (FP8 is
  /// exact in bf16; its scale multiplies the f32 sum of each 128 columns) and accumulates in f32.
  /// With `quantized` FP8 weights multiply FP8. For each row and 128 columns
  ///   s = max |x| / 448,   q = e4m3(x / s) (nearest even, saturating; 0 where s is 0),
  ///   out = sum over these blocks of (sum of q w) * s * scale, in f32.
  /// Other weights see x as it is.
  void linear(Tensor x, const LinearWeight& weight, Tensor out,
              const QuantizedActivations& quantized = {});
  /// out += x W^T + bias: the residual connection. `out` must not alias x.
  void linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                  const QuantizedActivations& quantized = {});
  /// out = silu(x G^T) * (x U^T), G and U the halves of `gate_up`.
  ///   x [T, in]   scratch [S, 2 * intermediate]   out [T, intermediate]; all of x's dtype
  /// With a scratch of fewer rows than T a backend that needs it goes S rows at a time.
  void linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch, Tensor out,
                       const QuantizedActivations& quantized = {});

  /// out = gelu(x W^T + bias), rounded once where linear() and gelu() would round twice.
  ///   x [T, in]   out [T, out]; both of one dtype
  void linear_gelu(Tensor x, const LinearWeight& weight, GeluKind kind, Tensor out);
  /// out = x W^T + bias; then its first heads as rotate() turns them, in place.
  ///   x [T, in]   out [T, out]; both of one dtype
  void linear_rotate(Tensor x, const LinearWeight& weight, const HeadRotation& rotation,
                     Tensor out);

  // ---- norms and activations ----------------------------------------------------------------
  /// out = x * weight / sqrt(mean(x^2) + epsilon), each row of the last dimension on its own.
  ///   x, out [..., dim] activation, dtypes may differ   weight [dim] f32
  void rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out);
  /// out[i] = rms_norm(x[indices[i]]).
  ///   x [any, dim], out [n, dim] activation, dtypes may differ   indices [n] i32   weight [dim]
  ///   f32
  void rms_norm_rows(Tensor x, Tensor indices, Tensor weight, float epsilon, Tensor out);
  /// out = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias, each row on its own.
  ///   x, out [..., dim] activation, dtypes may differ   weight, bias [dim] f32
  void layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon, Tensor out);
  /// out = silu(gate) * up.   gate_up [T, 2 * n]: gate columns first   out [T, n]; same dtype
  void silu_mul(Tensor gate_up, Tensor out);
  /// out = gelu(x), elementwise.   x, out: same shape and dtype, activation
  void gelu(Tensor x, GeluKind kind, Tensor out);

  // ---- rotary -------------------------------------------------------------------------------
  /// angle[t, i] = float(positions[axes[i], t]) * inverse_frequencies[i]; cosines and sines of it.
  ///   positions [num_axes, T] i32   inverse_frequencies [half] f32   axes [half] i32
  ///   cosines, sines [T, half] f32
  void rotary_table(Tensor positions, Tensor inverse_frequencies, Tensor axes, Tensor cosines,
                    Tensor sines);
  /// Rotates the pairs (i, i + dim / 2) of each head by the angle of its token:
  /// out[i] = x[i] cos[i] - x[i + half] sin[i];  out[i + half] = x[i + half] cos[i] + x[i] sin[i].
  ///   x, out [T, heads, dim] activation, same dtype   cosines, sines [T, dim / 2] f32
  void rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out);

  // ---- attention ----------------------------------------------------------------------------
  /// Writes k and v of each row to its slot of the cache; a negative slot is skipped (padding).
  ///   k, v [T, num_kv_heads, head_dim] activation   slots [T] i32
  void store_kv(Tensor k, Tensor v, Tensor slots, const PagedKv& kv);
  /// Causal attention over paged keys. Query j of a sequence with n queries and context c sees
  /// keys 0 .. c - n + j. Query heads share kv heads in consecutive groups; the scale is
  /// head_dim^-0.5.
  ///   q, out [T, num_heads, head_dim] activation, same dtype; may alias
  void attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans, Tensor out);
  /// Full attention inside each segment of rows, none across.
  ///   q, k, v, out [T, heads, head_dim] activation, same dtype; out aliases none of them
  ///   segment_begin: host numbers, first row of each segment, and T at the end
  void attend_packed(Tensor q, Tensor k, Tensor v, std::span<const int64_t> segment_begin,
                     Tensor out);

  // ---- sampling -----------------------------------------------------------------------------
  /// One token per row. In order: repetition, presence and frequency penalties; masked tokens to
  /// -inf; temperature; top-k; top-p; min-p; softmax; the first token (by falling probability, then
  /// rising id) whose cumulative probability exceeds `uniform`.
  ///   logits [rows, vocab] f32   ids [rows] i32
  ///   log_probs [rows] f32: the chosen token's log-softmax of the logits as given, before
  ///   penalties
  ///   reported_ids [rows] i32: ids once more, in shared memory; may be empty
  void sample(Tensor logits, const SamplingRows& rows, Tensor ids, Tensor log_probs,
              Tensor reported_ids = {});
  /// The `ids.size(1)` most likely tokens of each row, best first, with their log-softmax.
  ///   logits [rows, vocab] f32   ids [rows, n] i32   log_probs [rows, n] f32
  void top_log_probs(Tensor logits, Tensor ids, Tensor log_probs);
  /// counts[line[i]] learns that ids[i] was generated: bits 0..14 + 1, saturating. Lines are
  /// distinct; -1 is skipped.   ids, line [rows] i32   counts [lines, vocab] u16
  void count_tokens(Tensor ids, Tensor line, Tensor counts);

  // ---- blocks -------------------------------------------------------------------------------
  // Sequences of the operations above, for a backend to fuse. The default is the sequence itself
  // (backend/blocks.cpp); the default is also the test.

  /// hidden += o_proj(attention(rms_norm(hidden))), keys and values stored on the way.
  void attention_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                       const DecoderInputs& inputs, int64_t layer, const DecoderActivations& act);
  /// hidden += down_proj(silu(gate) * up), of rms_norm(hidden).
  void mlp_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                 const DecoderActivations& act);
  /// All layers: attention_block, mlp_block, then the DeepStack rows of that layer. `trace`, where
  /// given, sees "text.layer" before and "text.layer.after_deepstack" after the rows are added.
  void decoder_layers(const DecoderShape& shape, std::span<const DecoderLayerWeights> layers,
                      const DecoderInputs& inputs, const DecoderActivations& act,
                      const TraceFunction& trace = {});

 protected:
  virtual void do_copy(Tensor from, Tensor to) = 0;
  virtual void do_gather_rows(Tensor table, Tensor indices, Tensor out) = 0;
  virtual void do_begin_step(const StepBeginning& from, Tensor hidden, Tensor cosines,
                             Tensor sines) = 0;
  virtual void do_scatter_rows(Tensor rows, Tensor indices, Tensor out) = 0;
  virtual void do_add_rows(Tensor rows, Tensor indices, Tensor out) = 0;
  virtual void do_add(Tensor a, Tensor b, Tensor out) = 0;
  virtual void do_blend_rows(Tensor table, Tensor indices, Tensor weights, Tensor out) = 0;
  virtual void do_cut_patches(Tensor pixels, Tensor table, const PatchOrder& order, Tensor out) = 0;
  virtual void do_linear(Tensor x, const LinearWeight& weight, Tensor out,
                         const QuantizedActivations& quantized) = 0;
  virtual void do_linear_add(Tensor x, const LinearWeight& weight, Tensor out,
                             const QuantizedActivations& quantized) = 0;
  virtual void do_linear_silu_mul(Tensor x, const LinearWeight& gate_up, Tensor scratch, Tensor out,
                                  const QuantizedActivations& quantized) = 0;
  /// The default is do_linear(), then do_gelu() in place.
  virtual void do_linear_gelu(Tensor x, const LinearWeight& weight, GeluKind kind, Tensor out);
  /// The default is do_linear(), then do_rotate() in place.
  virtual void do_linear_rotate(Tensor x, const LinearWeight& weight, const HeadRotation& rotation,
                                Tensor out);
  virtual void do_rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out) = 0;
  virtual void do_rms_norm_rows(Tensor x, Tensor indices, Tensor weight, float epsilon,
                                Tensor out) = 0;
  virtual void do_layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon, Tensor out) = 0;
  virtual void do_silu_mul(Tensor gate_up, Tensor out) = 0;
  virtual void do_gelu(Tensor x, GeluKind kind, Tensor out) = 0;
  virtual void do_rotary_table(Tensor positions, Tensor inverse_frequencies, Tensor axes,
                               Tensor cosines, Tensor sines) = 0;
  virtual void do_rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) = 0;
  virtual void do_store_kv(Tensor k, Tensor v, Tensor slots, const PagedKv& kv) = 0;
  virtual void do_attend_paged(Tensor q, const PagedKv& kv, const PagedSpans& spans,
                               Tensor out) = 0;
  virtual void do_attend_packed(Tensor q, Tensor k, Tensor v,
                                std::span<const int64_t> segment_begin, Tensor out) = 0;
  virtual void do_sample(Tensor logits, const SamplingRows& rows, Tensor ids, Tensor log_probs,
                         Tensor reported_ids) = 0;
  virtual void do_top_log_probs(Tensor logits, Tensor ids, Tensor log_probs) = 0;
  virtual void do_count_tokens(Tensor ids, Tensor line, Tensor counts) = 0;

  virtual void do_attention_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                                  const DecoderInputs& inputs, int64_t layer,
                                  const DecoderActivations& act);
  virtual void do_mlp_block(const DecoderShape& shape, const DecoderLayerWeights& weights,
                            const DecoderActivations& act);
  virtual void do_decoder_layers(const DecoderShape& shape,
                                 std::span<const DecoderLayerWeights> layers,
                                 const DecoderInputs& inputs, const DecoderActivations& act,
                                 const TraceFunction& trace);
};

/// Calls body(x, scratch, out) for as many rows at a time as `scratch` has: for backends whose
/// linear_silu_mul() needs one.
template <typename Body>
void for_scratch_rows(const Tensor& x, const Tensor& scratch, const Tensor& out, const Body& body) {
  for (int64_t first = 0; first < x.size(0); first += scratch.size(0)) {
    const int64_t count = std::min(scratch.size(0), x.size(0) - first);
    body(x.slice(0, first, count), scratch.slice(0, 0, count), out.slice(0, first, count));
  }
}

/// Where a model should run.
struct BackendOptions {
  enum class Choice { automatic, cpu, cuda };
  Choice choice = Choice::automatic;
  int cuda_device = 0;
  int num_threads = 0;  // CPU threads; 0 = one per usable core
};

/// What is known of a GPU before anything is made on it.
struct GpuInfo {
  std::string name;
  int capability_major = 0;
  int capability_minor = 0;
  int driver_version = 0;  // of CUDA: 13000 is 13.0
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;  // -1: unknown
};

/// Empty with a sentence in `why_not` when CUDA cannot use GPU `device`. Makes nothing on the card.
[[nodiscard]] std::optional<GpuInfo> find_gpu(int device, std::string* why_not = nullptr);

/// The first backend of the priority list (CUDA, then CPU) that works and fits `options`. Throws
/// Error(device) when a backend named explicitly is not there. `why_not_cuda`, where given, is set
/// to one sentence when the automatic choice passed CUDA over.
[[nodiscard]] std::unique_ptr<Backend> create_backend(const BackendOptions& options,
                                                      std::string* why_not_cuda = nullptr);

}  // namespace glimpse
