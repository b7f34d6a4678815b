// Times the operations that move memory (norms, elementwise, rotary, KV store, gather, sampling)
// and the host's side (upload, download, replay) on the GPU, at the sizes of the 2B model. One JSON
// object on standard output: microseconds and, where bytes say something, GB/s.
#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include <fmt/format.h>

#include "backend/backend.h"
#include "base/json.h"

namespace glimpse {
namespace {

constexpr int64_t kVocabulary = 151936;

class Timer {
 public:
  explicit Timer(Backend& backend) : backend_(backend) {}

  /// Median over several rounds of the time of one `run`, in microseconds.
  template <typename Run>
  void time(const std::string& name, int64_t bytes, const Run& run, double operations = 0) {
    constexpr int kRounds = 7;
    constexpr int kRuns = 20;
    run();
    backend_.synchronize();
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kRuns; ++i) run();
      backend_.synchronize();
      const std::chrono::duration<double, std::micro> spent =
          std::chrono::steady_clock::now() - begin;
      times.push_back(spent.count() / kRuns);
    }
    std::sort(times.begin(), times.end());
    const double us = times[times.size() / 2];
    Json row = {{"name", name}, {"us", us}};
    if (bytes > 0) row["gb_per_s"] = static_cast<double>(bytes) / us / 1e3;
    if (operations > 0) row["tflop_per_s"] = operations / us / 1e6;
    results.push_back(row);
  }

  Json results = Json::array();

 private:
  Backend& backend_;
};

/// Device memory for everything that is timed.
class Memory {
 public:
  explicit Memory(Backend& backend)
      : backend_(backend), arena_(backend.allocate(int64_t{5} << 30, "operations"), "operations") {}

  Tensor zeros(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = arena_.allocate(dtype, shape);
    backend_.zero(tensor);
    return tensor;
  }
  /// Random bits with small exponents: no NaN, no infinity.
  Tensor noise(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = arena_.allocate(dtype, shape);
    std::vector<uint8_t> bytes(static_cast<size_t>(tensor.num_bytes()));
    std::mt19937 random(2);
    for (size_t i = 0; i < bytes.size(); i += 2) {
      const uint32_t bits = random();
      bytes[i] = dtype == DType::f8_e4m3 ? bits & 0xBF : bits & 0xFF;
      // The high byte of a bf16 of magnitude 2^-3 .. 2, or another e4m3.
      const bool is_negative = (bits >> 16 & 1U) != 0;
      bytes[i + 1] = dtype == DType::f8_e4m3 ? bits >> 8 & 0xBF : (is_negative ? 0xBE : 0x3E);
    }
    backend_.upload(std::as_bytes(std::span(bytes)), tensor);
    return tensor;
  }
  template <typename T>
  Tensor filled(const std::vector<T>& values, std::initializer_list<int64_t> shape) {
    const Tensor tensor = arena_.allocate(kDTypeOf<T>, shape);
    backend_.upload(std::as_bytes(std::span(values)), tensor);
    return tensor;
  }
  Tensor normal(int64_t rows, int64_t columns, float spread) {
    std::mt19937 random(1);
    std::normal_distribution<float> distribution(0.0F, spread);
    std::vector<float> values(static_cast<size_t>(rows * columns));
    for (float& value : values) value = distribution(random);
    return filled(values, {rows, columns});
  }

 private:
  Backend& backend_;
  Arena arena_;
};

void time_elementwise(Backend& backend, Memory& memory, Timer& timer) {
  const Tensor hidden = memory.normal(3072, 2048, 1.0F);
  const Tensor half = memory.zeros(DType::bf16, {3072, 2048});
  const Tensor weight = memory.zeros(DType::f32, {2048});
  timer.time("rms_norm f32 [2048, 2048] to bf16", 2048 * 2048 * 6, [&] {
    backend.rms_norm(hidden.slice(0, 0, 2048), weight, 1e-6F, half.slice(0, 0, 2048));
  });
  const Tensor vision = memory.zeros(DType::f32, {3072, 1152});
  const Tensor vision_half = memory.zeros(DType::bf16, {3072, 1152});
  const Tensor vision_weight = memory.zeros(DType::f32, {1152});
  timer.time("layer_norm f32 [3072, 1152] to bf16", 3072 * 1152 * 6,
             [&] { backend.layer_norm(vision, vision_weight, vision_weight, 1e-6F, vision_half); });
  const Tensor middle = memory.zeros(DType::bf16, {3072, 4304});
  timer.time("gelu bf16 [3072, 4304]", 3072 * 4304 * 4,
             [&] { backend.gelu(middle, GeluKind::tanh_approximation, middle); });
  const Tensor gate_up = memory.zeros(DType::bf16, {2048, 2 * 6144});
  const Tensor gated = memory.zeros(DType::bf16, {2048, 6144});
  timer.time("silu_mul bf16 [2048, 6144]", 2048 * 6144 * 6,
             [&] { backend.silu_mul(gate_up, gated); });
}

/// One linear layer; random numbers, since zeros draw less power.
void time_linear(Backend& backend, Memory& memory, Timer& timer, DType stored, int64_t rows,
                 int64_t out, int64_t in, bool is_gated) {
  LinearPart part{.weight = memory.noise(stored, {out, in})};
  if (stored == DType::f8_e4m3) {
    part.scales = memory.zeros(DType::f32, {(out + 127) / 128, (in + 127) / 128});
  }
  const Tensor x = memory.noise(DType::bf16, {rows, in});
  const Tensor y = memory.zeros(DType::bf16, {rows, out});
  const Tensor gated = memory.zeros(DType::bf16, {rows, out / 2});
  const LinearWeight weight{.parts = {part}};
  timer.time(
      fmt::format("linear{} {} [{}, {}] to {}", is_gated ? "_silu_mul" : "", name_of(stored), rows,
                  in, out),
      0,
      [&] {
        is_gated ? backend.linear_silu_mul(x, weight, y, gated) : backend.linear(x, weight, y);
      },
      2.0 * static_cast<double>(rows) * static_cast<double>(out) * static_cast<double>(in));
}

void time_products(Backend& backend, Memory& memory, Timer& timer) {
  for (const int64_t rows : {782, 2048}) {
    time_linear(backend, memory, timer, DType::f8_e4m3, rows, 4096, 2048, false);
    time_linear(backend, memory, timer, DType::f8_e4m3, rows, 2048, 2048, false);
    time_linear(backend, memory, timer, DType::f8_e4m3, rows, 12288, 2048, true);
    time_linear(backend, memory, timer, DType::f8_e4m3, rows, 2048, 6144, false);
  }
  time_linear(backend, memory, timer, DType::bf16, 2048, 12288, 2048, true);
  time_linear(backend, memory, timer, DType::bf16, 3072, 3072, 1024, false);
  time_linear(backend, memory, timer, DType::bf16, 3072, 1024, 1024, false);
  time_linear(backend, memory, timer, DType::bf16, 3072, 4096, 1024, false);
  time_linear(backend, memory, timer, DType::bf16, 3072, 1024, 4096, false);
  time_linear(backend, memory, timer, DType::bf16, 1, kVocabulary, 2048, false);
}

void time_attention(Backend& backend, Memory& memory, Timer& timer) {
  for (const int64_t width : {1024, 1152}) {  // 2B and 4B, 8B and 32B
    const Tensor qkv = memory.noise(DType::bf16, {3072, 3 * width});
    const auto heads = [&](int64_t which) {
      return qkv.slice(1, which * width, width).split_last(16);
    };
    const Tensor out = memory.zeros(DType::bf16, {3072, width}).split_last(16);
    constexpr int64_t kWhole[] = {0, 3072};
    timer.time(
        fmt::format("attend_packed [3072, 16, {}]", width / 16), 0,
        [&] { backend.attend_packed(heads(0), heads(1), heads(2), kWhole, out); },
        4.0 * 3072 * 3072 * static_cast<double>(width));
  }
  const Tensor q = memory.noise(DType::bf16, {2048, 2048}).split_last(16);
  const Tensor attended = memory.zeros(DType::bf16, {2048, 2048}).split_last(16);
  std::vector<int32_t> pages(64);
  std::iota(pages.begin(), pages.end(), 0);
  PagedSpans spans;
  spans.query_begin = memory.filled(std::vector<int32_t>{0, 2048}, {2});
  spans.context_length = memory.filled(std::vector<int32_t>{2048}, {1});
  spans.page_table = memory.filled(pages, {1, 64});
  spans.max_queries = 2048;
  spans.max_context = 2048;
  const PagedKv kv{memory.noise(DType::bf16, {64, 8, kKvPageTokens, 128}),
                   memory.noise(DType::bf16, {64, 8, kKvPageTokens, 128}),
                   {},
                   {}};
  timer.time(
      "attend_paged [2048, 16, 128], 8 kv heads", 0,
      [&] { backend.attend_paged(q, kv, spans, attended); }, 2.0 * 2048 * 2048 * 2048);
}

void time_heads(Backend& backend, Memory& memory, Timer& timer) {
  const Tensor qkv = memory.zeros(DType::bf16, {3072, 3 * 1152});
  const Tensor q = qkv.slice(1, 0, 1152).split_last(16);
  const Tensor cosines = memory.zeros(DType::f32, {3072, 36});
  timer.time("rotate bf16 [3072, 16, 72]", 3072 * 1152 * 4,
             [&] { backend.rotate(q, cosines, cosines, q); });
  const Tensor text = memory.zeros(DType::bf16, {2048, 4096});
  const Tensor heads = text.slice(1, 0, 2048).split_last(16);
  const Tensor norm = memory.zeros(DType::f32, {128});
  timer.time("rms_norm of heads bf16 [2048, 16, 128]", 2048 * 2048 * 4,
             [&] { backend.rms_norm(heads, norm, 1e-6F, heads); });
  std::vector<int32_t> places(2048);
  std::iota(places.begin(), places.end(), 0);
  const Tensor slots = memory.filled(places, {2048});
  const Tensor k = text.slice(1, 2048, 1024).split_last(8);
  for (const DType stored : {DType::bf16, DType::f8_e4m3}) {
    PagedKv kv{memory.zeros(stored, {64, 8, kKvPageTokens, 128}),
               memory.zeros(stored, {64, 8, kKvPageTokens, 128}),
               {},
               {}};
    if (stored == DType::f8_e4m3) {
      kv.key_scales = memory.zeros(DType::f32, {64, 8, kKvPageTokens});
      kv.value_scales = memory.zeros(DType::f32, {64, 8, kKvPageTokens});
    }
    timer.time(fmt::format("store_kv {} [2048, 8, 128]", name_of(stored)),
               int64_t{2048} * 1024 * 2 * (2 + bytes_of(stored)),
               [&] { backend.store_kv(k, k, slots, kv); });
  }
  const Tensor table = memory.zeros(DType::bf16, {kVocabulary, 2048});
  const Tensor hidden = memory.zeros(DType::f32, {2048, 2048});
  timer.time("gather_rows bf16 [2048, 2048] to f32", 2048 * 2048 * 6,
             [&] { backend.gather_rows(table, slots, hidden); });
}

void time_sampling(Backend& backend, Memory& memory, Timer& timer) {
  struct Case {
    const char* name;
    float temperature;
    int32_t top_k;
    float top_p;
  };
  for (const int64_t rows : {1, 8}) {
    const Tensor logits = memory.normal(rows, kVocabulary, 3.0F);
    const auto of = [&]<typename T>(T value) {
      return memory.filled(std::vector<T>(static_cast<size_t>(rows), value), {rows});
    };
    const Tensor ids = memory.zeros(DType::i32, {rows});
    const Tensor log_probs = memory.zeros(DType::f32, {rows});
    for (const Case& c :
         {Case{"greedy", 0.0F, 0, 1.0F}, Case{"top-k 20, top-p 0.8", 0.7F, 20, 0.8F},
          Case{"top-p 0.9", 1.0F, 0, 0.9F}, Case{"all", 1.0F, 0, 1.0F}}) {
      const SamplingRows sampling{.temperature = of(c.temperature),
                                  .top_k = of(c.top_k),
                                  .top_p = of(c.top_p),
                                  .min_p = of(0.0F),
                                  .uniform = of(0.5F),
                                  .repetition_penalty = of(1.0F),
                                  .presence_penalty = of(0.0F),
                                  .frequency_penalty = of(0.0F),
                                  .counts_row = of(int32_t{-1}),
                                  .token_counts = {},
                                  .mask_row = of(int32_t{-1}),
                                  .allowed = {}};
      timer.time(fmt::format("sample {}, {} rows", c.name, rows), 0,
                 [&] { backend.sample(logits, sampling, ids, log_probs); });
    }
    const Tensor top = memory.zeros(DType::i32, {rows, 20});
    const Tensor top_probs = memory.zeros(DType::f32, {rows, 20});
    timer.time(fmt::format("top_log_probs 20, {} rows", rows), 0,
               [&] { backend.top_log_probs(logits, top, top_probs); });
  }
}

void time_host(Backend& backend, Memory& memory, Timer& timer) {
  const std::vector<std::byte> source(size_t{256} << 20);
  const Tensor target = memory.zeros(DType::u8, {static_cast<int64_t>(source.size())});
  timer.time("upload of 256 MiB", static_cast<int64_t>(source.size()),
             [&] { backend.upload(source, target); });
  const Tensor word = memory.zeros(DType::i32, {1});
  int32_t value = 0;
  timer.time("download of a word", 0,
             [&] { backend.download(word, std::as_writable_bytes(std::span(&value, 1))); });
  timer.time("upload of a word", 0,
             [&] { backend.upload(std::as_bytes(std::span(&value, 1)), word); });
  timer.time("replay of one memset, and the wait for it", 0, [&] {
    backend.replay(1, [&] { backend.zero(word); });
    backend.synchronize();
  });
}

int run() {
  const auto made = std::chrono::steady_clock::now();
  const auto backend = create_backend({.choice = BackendOptions::Choice::cuda});
  const std::chrono::duration<double, std::milli> making = std::chrono::steady_clock::now() - made;
  Memory memory(*backend);
  Timer timer(*backend);
  time_elementwise(*backend, memory, timer);
  time_products(*backend, memory, timer);
  time_attention(*backend, memory, timer);
  time_heads(*backend, memory, timer);
  time_sampling(*backend, memory, timer);
  time_host(*backend, memory, timer);
  const Json report = {{"device", backend->description()},
                       {"backend_ms", making.count()},
                       {"backend_bytes", backend->memory().own_bytes},
                       {"warnings", backend->warnings()},
                       {"operations", timer.results}};
  fmt::print("{}\n", report.dump());
  return 0;
}

}  // namespace
}  // namespace glimpse

int main() {
  try {
    return glimpse::run();
  } catch (const std::exception& error) {
    fmt::print(stderr, "operations: {}\n", error.what());
    return 1;
  }
}
