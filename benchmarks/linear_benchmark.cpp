// Linear layers of the CPU backend at the shapes of Qwen3-VL-2B, beside oneDNN's products of the
// same shapes and the machine's read bandwidth. Rates: GFLOP/s, and GB/s of weight bytes.
//   linear_benchmark [--benchmark_filter=...]
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>
#ifdef GLIMPSE_HAS_ONEDNN
#include <dnnl.hpp>
#endif

#include "base/thread_pool.h"
#include "cpu/cpu_backend.h"

namespace glimpse {
namespace {

struct Shape {
  const char* name;
  int64_t outputs, columns;
};

constexpr Shape kShapes[] = {{"qkv", 4096, 2048},       {"o", 2048, 2048},
                             {"gate_up", 12288, 2048},  {"down", 2048, 6144},
                             {"lm_head", 151936, 2048}, {"vit_qkv", 3072, 1024},
                             {"vit_fc1", 4096, 1024},   {"vit_fc2", 1024, 4096}};

Backend& backend() {
  static const std::unique_ptr<Backend> cpu = create_cpu_backend(0);
  return *cpu;
}

/// Bytes that are small finite numbers in every format.
std::vector<uint8_t> random_bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  std::mt19937 random(1);
  for (size_t i = 0; i + 4 <= count; i += 4) {
    const uint32_t word = random() & 0xBCBFBCBFU;
    std::copy_n(reinterpret_cast<const uint8_t*>(&word), 4, bytes.data() + i);
  }
  return bytes;
}

void report(benchmark::State& state, int64_t rows, const Shape& shape, int64_t weight_bytes) {
  const double seconds = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * static_cast<double>(rows * shape.outputs * shape.columns) * seconds,
                         benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(1e-9 * static_cast<double>(weight_bytes) * seconds,
                                              benchmark::Counter::kIsRate);
}

void linear(benchmark::State& state, Shape shape, int64_t rows, DType weight_dtype, DType dtype) {
  const int64_t weight_bytes = shape.outputs * shape.columns * bytes_of(weight_dtype);
  const std::vector<uint8_t> weight = random_bytes(static_cast<size_t>(weight_bytes));
  const std::vector<uint8_t> x =
      random_bytes(static_cast<size_t>(rows * shape.columns * bytes_of(dtype)));
  std::vector<float> out(static_cast<size_t>(rows * shape.outputs));
  const int64_t scale_rows = (shape.outputs + kScaleBlock - 1) / kScaleBlock;
  const int64_t scale_columns = (shape.columns + kScaleBlock - 1) / kScaleBlock;
  const std::vector<float> scales(static_cast<size_t>(scale_rows * scale_columns), 0.01F);
  LinearPart part;
  part.weight = Tensor(weight.data(), weight_dtype, Device::cpu, {shape.outputs, shape.columns});
  if (weight_dtype == DType::f8_e4m3) {
    part.scales = Tensor(scales.data(), DType::f32, Device::cpu, {scale_rows, scale_columns});
  }
  const LinearWeight prepared{.parts = {part}};
  const Tensor in(x.data(), dtype, Device::cpu, {rows, shape.columns});
  const Tensor result(out.data(), DType::f32, Device::cpu, {rows, shape.outputs});
  for (auto _ : state) backend().linear(in, prepared, result);
  report(state, rows, shape, weight_bytes);
}

#ifdef GLIMPSE_HAS_ONEDNN
void onednn(benchmark::State& state, Shape shape, int64_t rows, dnnl::memory::data_type dtype) {
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc x_desc({rows, shape.columns}, dtype, memory::format_tag::ab);
  const memory::desc w_any({shape.columns, shape.outputs}, dtype, memory::format_tag::any);
  const memory::desc out_desc({rows, shape.outputs}, memory::data_type::f32,
                              memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc description(engine, x_desc, w_any, out_desc);
#else
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x_desc, w_any, out_desc),
                                                 engine);
#endif
  memory x(x_desc, engine);
  memory w(description.weights_desc(), engine);  // its own best layout: packing is not timed
  memory out(out_desc, engine);
  for (memory* m : {&x, &w}) {
    const std::vector<uint8_t> bytes = random_bytes(m->get_desc().get_size());
    std::copy(bytes.begin(), bytes.end(), static_cast<uint8_t*>(m->get_data_handle()));
  }
  const dnnl::matmul product(description);
  const std::unordered_map<int, memory> arguments = {
      {DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, out}};
  for (auto _ : state) {
    product.execute(stream, arguments);
    stream.wait();
  }
  report(state, rows, shape, static_cast<int64_t>(w.get_desc().get_size()));
}
#endif

/// Reads a gigabyte with all threads: what a product that reads each weight once cannot exceed.
void read_bandwidth(benchmark::State& state) {
  const std::vector<uint64_t> data(size_t{1} << 27, 1);
  ThreadPool pool;
  std::vector<uint64_t> sums(64);
  for (auto _ : state) {
    pool.parallel_for(64, 1, [&](int64_t first, int64_t last) {
      const size_t share = data.size() / 64;
      for (int64_t part = first; part < last; ++part) {
        const uint64_t* from = data.data() + static_cast<size_t>(part) * share;
        uint64_t sum = 0;
        for (size_t i = 0; i < share; ++i) sum += from[i];
        sums[static_cast<size_t>(part)] = sum;
      }
    });
    benchmark::DoNotOptimize(sums.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(data.size() * 8));
}

void register_all() {
  using benchmark::RegisterBenchmark;
  RegisterBenchmark("read_bandwidth", read_bandwidth)->UseRealTime();
  for (const Shape& shape : kShapes) {
    const bool is_vision = shape.name[0] == 'v';
    const bool is_head = shape.outputs > 100000;
    const std::string name = shape.name;
    const auto add = [&](const std::string& kind, int64_t rows, DType weight, DType dtype) {
      RegisterBenchmark((name + "/" + kind + "/" + std::to_string(rows)).c_str(),
                        [=](benchmark::State& s) { linear(s, shape, rows, weight, dtype); })
          ->UseRealTime();
    };
    for (const int64_t rows : {1, 16}) {
      if (is_vision) break;
      add(is_head ? "bf16" : "fp8", rows, is_head ? DType::bf16 : DType::f8_e4m3, DType::bf16);
    }
    if (is_head) continue;
    const int64_t rows = is_vision ? 1200 : 512;
    add(is_vision ? "bf16" : "fp8", rows, is_vision ? DType::bf16 : DType::f8_e4m3, DType::bf16);
    add("f32", rows, is_vision ? DType::bf16 : DType::f8_e4m3, DType::f32);
#ifdef GLIMPSE_HAS_ONEDNN
    const auto add_yardstick = [&](const std::string& kind, dnnl::memory::data_type dtype) {
      RegisterBenchmark((name + "/onednn_" + kind + "/" + std::to_string(rows)).c_str(),
                        [=](benchmark::State& s) { onednn(s, shape, rows, dtype); })
          ->UseRealTime();
    };
    add_yardstick("bf16", dnnl::memory::data_type::bf16);
    add_yardstick("f32", dnnl::memory::data_type::f32);
#endif
  }
}

}  // namespace
}  // namespace glimpse

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  glimpse::register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
