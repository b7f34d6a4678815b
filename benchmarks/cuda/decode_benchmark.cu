// The fused decoder and the streamed product on their own: checked against plain loops in double on
// small odd shapes, then timed at the shapes of Qwen3-VL-2B and 4B with random weights.
//   decode_benchmark [repeats] [check | time | brief]   (all unless one is named)
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "base/float_formats.h"
#include "cuda/decode_layers.h"
#include "cuda/gemv.h"

namespace {

using namespace glimpse;
using namespace glimpse::cuda;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

/// Device memory for the life of the program.
void* device_bytes(size_t bytes) {
  void* pointer = nullptr;
  require(cudaMalloc(&pointer, bytes), "cudaMalloc");
  require(cudaMemset(pointer, 0xFF, bytes), "cudaMemset");  // poison: NaN in every format
  return pointer;
}

template <typename T>
T* to_device(const std::vector<T>& host) {
  auto* pointer = static_cast<T*>(device_bytes(host.size() * sizeof(T)));
  require(cudaMemcpy(pointer, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
          "upload");
  return pointer;
}

template <typename T>
std::vector<T> to_host(const void* device, size_t count) {
  std::vector<T> host(count);
  require(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost), "download");
  return host;
}

float rounded(double x) {
  return to_float(to_bfloat16(static_cast<float>(x)));
}

/// A weight matrix on the host in double and on the device as stored.
struct Matrix {
  int rows, columns;
  std::vector<float> values;  // exact
  void* stored = nullptr;
  float* scales = nullptr;
};

Matrix make_matrix(std::mt19937& random, int rows, int columns, bool is_f8) {
  std::normal_distribution<float> normal(0, 1);
  Matrix m{rows, columns, {}};
  m.values.resize(size_t(rows) * columns);
  const float size = 1.0F / std::sqrt(float(columns));
  if (!is_f8) {
    std::vector<uint16_t> bits(m.values.size());
    for (size_t i = 0; i < bits.size(); ++i) {
      bits[i] = to_bfloat16(normal(random) * size).bits;
      m.values[i] = to_float(BFloat16{bits[i]});
    }
    m.stored = to_device(bits);
    return m;
  }
  const int scale_columns = (columns + 127) / 128;
  std::vector<float> scales(size_t((rows + 127) / 128) * scale_columns);
  for (float& s : scales) s = size * (0.5F + std::abs(normal(random)));
  std::vector<uint8_t> bits(m.values.size());
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      const size_t i = size_t(r) * columns + c;
      bits[i] = to_float8_e4m3(normal(random)).bits;
      m.values[i] =
          to_float(Float8E4M3{bits[i]}) * scales[size_t(r / 128) * scale_columns + c / 128];
    }
  }
  m.stored = to_device(bits);
  m.scales = to_device(scales);
  return m;
}

std::vector<double> multiply(const Matrix& m, const std::vector<float>& x) {
  std::vector<double> y(m.rows);
  for (int r = 0; r < m.rows; ++r) {
    double sum = 0;
    for (int c = 0; c < m.columns; ++c) sum += double(m.values[size_t(r) * m.columns + c]) * x[c];
    y[r] = sum;
  }
  return y;
}

/// Activations beside bf16 weights are bf16; beside FP8 weights they have more bits.
float activation(double x, bool weight_f8) {
  return weight_f8 ? static_cast<float>(x) : rounded(x);
}

/// rms_norm.
std::vector<float> normed(const std::vector<double>& x, const std::vector<float>& weight,
                          double epsilon, bool weight_f8) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  const double factor = 1 / std::sqrt(sum / x.size() + epsilon);
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = activation(x[i] * weight[i] * factor, weight_f8);
  }
  return y;
}

struct HostLayer {
  Matrix qkv, o, gate, up, down;
  std::vector<float> norm1, norm2, q_norm, k_norm;
  std::vector<float> keys, values;  // [pages, kv_heads, 32, 128] as the device holds them
};

struct Shape {
  int hidden, intermediate, heads, kv_heads, layers;
};

/// One decode step of `rows` sequences against the plain loops; returns the relative error, -1
/// where the shape is not supported, -2 where the same step gave other bits.
double check_decode(const Shape& shape, int rows, const std::vector<int>& contexts, bool weight_f8,
                    bool kv_f8, bool with_norm, int multiprocessors) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 1);
  const auto vector = [&](size_t n, float mean, float spread) {
    std::vector<float> v(n);
    for (float& x : v) x = mean + spread * normal(random);
    return v;
  };
  int max_pages = 0;
  for (const int c : contexts) max_pages = std::max(max_pages, (c + 31) / 32);
  const int pages = rows * max_pages + 3;
  // Pages are dealt out backwards, so that no order of them is assumed.
  std::vector<int32_t> table(size_t(rows) * max_pages);
  for (size_t i = 0; i < table.size(); ++i) table[i] = pages - 1 - int(i);
  const size_t cache_elements = size_t(pages) * shape.kv_heads * 32 * 128;

  std::vector<HostLayer> layers(shape.layers);
  DecodeLayers device_layers;
  for (int l = 0; l < shape.layers; ++l) {
    HostLayer& h = layers[l];
    h.qkv = make_matrix(random, (shape.heads + 2 * shape.kv_heads) * 128, shape.hidden, weight_f8);
    h.o = make_matrix(random, shape.hidden, shape.heads * 128, weight_f8);
    h.gate = make_matrix(random, shape.intermediate, shape.hidden, weight_f8);
    h.up = make_matrix(random, shape.intermediate, shape.hidden, weight_f8);
    h.down = make_matrix(random, shape.hidden, shape.intermediate, weight_f8);
    h.norm1 = vector(shape.hidden, 1, 0.1F);
    h.norm2 = vector(shape.hidden, 1, 0.1F);
    h.q_norm = vector(128, 1, 0.1F);
    h.k_norm = vector(128, 1, 0.1F);
    DecodeLayer& d = device_layers.layers[l];
    d.input_layernorm = to_device(h.norm1);
    d.post_attention_layernorm = to_device(h.norm2);
    d.q_norm = with_norm ? to_device(h.q_norm) : nullptr;
    d.k_norm = with_norm ? to_device(h.k_norm) : nullptr;
    const Matrix* matrices[] = {&h.qkv, &h.o, &h.gate, &h.down};
    for (int i = 0; i < kDecodeProducts; ++i) {
      d.weights[i] = matrices[i]->stored;
      d.scales[i] = matrices[i]->scales;
    }
    d.up = h.up.stored, d.up_scales = h.up.scales;
    h.keys = vector(cache_elements, 0, 1);
    h.values = vector(cache_elements, 0, 1);
    const auto put = [&](std::vector<float>& cache, void*& stored, float*& scales) {
      if (!kv_f8) {
        std::vector<uint16_t> bits(cache.size());
        for (size_t i = 0; i < bits.size(); ++i) {
          bits[i] = to_bfloat16(cache[i]).bits;
          cache[i] = to_float(BFloat16{bits[i]});
        }
        stored = to_device(bits);
        return;
      }
      std::vector<uint8_t> bits(cache.size());
      std::vector<float> factors(cache.size() / 128);
      for (size_t i = 0; i < bits.size(); ++i) {
        float& factor = factors[i / 128];
        if (i % 128 == 0) factor = 0.002F + 0.001F * std::abs(normal(random));
        bits[i] = to_float8_e4m3(cache[i] / factor).bits;
        cache[i] = to_float(Float8E4M3{bits[i]}) * factor;
      }
      stored = to_device(bits);
      scales = to_device(factors);
    };
    put(h.keys, d.keys, d.key_scales);
    put(h.values, d.values, d.value_scales);
  }

  const std::vector<float> hidden = vector(size_t(rows) * shape.hidden, 0, 1);
  std::vector<float> cosines(rows * 64), sines(rows * 64);
  for (int i = 0; i < rows * 64; ++i) {
    const float angle = 3 * normal(random);
    cosines[i] = std::cos(angle);
    sines[i] = std::sin(angle);
  }
  std::vector<int32_t> slots(rows);
  for (int r = 0; r < rows; ++r) {
    const int token = contexts[r] - 1;
    slots[r] = table[size_t(r) * max_pages + token / 32] * 32 + token % 32;
  }

  DecodeArguments a;
  a.num_layers = shape.layers, a.rows = rows, a.hidden_size = shape.hidden;
  a.intermediate_size = shape.intermediate, a.num_heads = shape.heads;
  a.num_kv_heads = shape.kv_heads, a.weight_is_f8 = weight_f8, a.kv_is_f8 = kv_f8;
  a.hidden = to_device(hidden);
  a.cosines = to_device(cosines), a.sines = to_device(sines), a.slots = to_device(slots);
  a.context_length = to_device(std::vector<int32_t>(contexts.begin(), contexts.end()));
  a.page_table = to_device(table), a.max_pages = max_pages;
  a.workspace = device_bytes(decode_workspace_bytes());
  require(cudaMemset(a.workspace, 0, decode_workspace_bytes()), "memset");
  if (!decode_supports(a, multiprocessors)) return -1;
  require(launch_decode(a, device_layers, multiprocessors, nullptr), "launch_decode");
  require(cudaDeviceSynchronize(), "decode step");
  const auto got = to_host<float>(a.hidden, hidden.size());
  // The same bits every time: sums have one order, whatever the blocks' timing.
  for (int again = 0; again < 20; ++again) {
    require(cudaMemcpy(a.hidden, hidden.data(), hidden.size() * 4, cudaMemcpyHostToDevice),
            "upload");
    require(launch_decode(a, device_layers, multiprocessors, nullptr), "launch_decode");
    if (to_host<float>(a.hidden, hidden.size()) != got) return -2;
  }

  double worst = 0, size = 0;
  for (int r = 0; r < rows; ++r) {
    std::vector<double> x(hidden.begin() + size_t(r) * shape.hidden,
                          hidden.begin() + size_t(r + 1) * shape.hidden);
    for (HostLayer& h : layers) {
      std::vector<double> qkv = multiply(h.qkv, normed(x, h.norm1, 1e-6, weight_f8));
      for (double& v : qkv) v = rounded(v);
      const auto rope = [&](double* head, const std::vector<float>& norm) {
        if (with_norm) {
          double sum = 0;
          for (int i = 0; i < 128; ++i) sum += head[i] * head[i];
          const double factor = 1 / std::sqrt(sum / 128 + 1e-6);
          for (int i = 0; i < 128; ++i) head[i] = rounded(head[i] * factor * norm[i]);
        }
        for (int i = 0; i < 64; ++i) {
          const double c = cosines[r * 64 + i], s = sines[r * 64 + i];
          const double low = head[i], high = head[i + 64];
          head[i] = rounded(low * c - high * s);
          head[i + 64] = rounded(high * c + low * s);
        }
      };
      const auto entry = [&](int token, int kv_head) {
        return ((size_t(table[size_t(r) * max_pages + token / 32]) * shape.kv_heads + kv_head) *
                    32 +
                token % 32) *
               128;
      };
      const auto store = [&](const double* head, std::vector<float>& cache, size_t at) {
        float largest = 0;
        for (int i = 0; i < 128; ++i) largest = std::max(largest, float(std::abs(head[i])));
        const float scale = largest / 448.0F;
        for (int i = 0; i < 128; ++i) {
          cache[at + i] =
              kv_f8 ? to_float(to_float8_e4m3(float(head[i]) / scale)) * scale : float(head[i]);
        }
      };
      for (int h_index = 0; h_index < shape.heads; ++h_index) rope(&qkv[h_index * 128], h.q_norm);
      for (int k = 0; k < shape.kv_heads; ++k) {
        rope(&qkv[(shape.heads + k) * 128], h.k_norm);
        store(&qkv[(shape.heads + k) * 128], h.keys, entry(contexts[r] - 1, k));
        store(&qkv[(shape.heads + shape.kv_heads + k) * 128], h.values, entry(contexts[r] - 1, k));
      }
      std::vector<float> attended(shape.heads * 128);
      for (int q = 0; q < shape.heads; ++q) {
        const int k = q / (shape.heads / shape.kv_heads);
        std::vector<double> scores(contexts[r]);
        double largest = -1e300, total = 0;
        for (int token = 0; token < contexts[r]; ++token) {
          double score = 0;
          for (int i = 0; i < 128; ++i) score += qkv[q * 128 + i] * h.keys[entry(token, k) + i];
          scores[token] = score / std::sqrt(128.0);
          largest = std::max(largest, scores[token]);
        }
        std::vector<double> sum(128);
        for (int token = 0; token < contexts[r]; ++token) {
          const double w = std::exp(scores[token] - largest);
          total += w;
          for (int i = 0; i < 128; ++i) sum[i] += w * h.values[entry(token, k) + i];
        }
        for (int i = 0; i < 128; ++i) attended[q * 128 + i] = activation(sum[i] / total, weight_f8);
      }
      const auto projected = multiply(h.o, attended);
      for (int i = 0; i < shape.hidden; ++i) x[i] += projected[i];
      const auto y = normed(x, h.norm2, 1e-6, weight_f8);
      const auto gate = multiply(h.gate, y);
      const auto up = multiply(h.up, y);
      std::vector<float> inner(shape.intermediate);
      for (int i = 0; i < shape.intermediate; ++i) {
        inner[i] = rounded(gate[i] / (1 + std::exp(-gate[i])) * up[i]);
      }
      const auto down = multiply(h.down, inner);
      for (int i = 0; i < shape.hidden; ++i) x[i] += down[i];
    }
    for (int i = 0; i < shape.hidden; ++i) {
      const double difference = got[size_t(r) * shape.hidden + i] - x[i];
      worst += difference * difference;
      size += x[i] * x[i];
    }
  }
  return std::sqrt(worst / size);
}

double check_gemv(int rows, int outputs, int columns, bool is_f8, GemvOp op, int multiprocessors) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 1);
  const Matrix w = make_matrix(random, outputs, columns, is_f8);
  const Matrix up = make_matrix(random, outputs, columns, is_f8);
  const int stride = columns + 24;
  std::vector<uint16_t> x(size_t(rows) * stride);
  for (auto& v : x) v = to_bfloat16(normal(random)).bits;
  std::vector<float> bias(outputs), out(size_t(rows) * outputs);
  for (float& b : bias) b = normal(random);
  for (float& o : out) o = normal(random);
  GemvArguments a;
  a.x = to_device(x), a.x_stride = stride, a.rows = rows, a.weight = w.stored, a.scales = w.scales;
  a.weight_up = up.stored, a.scales_up = up.scales;
  a.bias = op == GemvOp::silu_mul ? nullptr : to_device(bias);
  a.out = to_device(out), a.out_stride = outputs, a.outputs = outputs, a.columns = columns;
  a.op = op, a.weight_is_f8 = is_f8, a.out_is_f32 = true;
  if (!gemv_supports(a)) return -1;
  require(launch_gemv(a, multiprocessors, nullptr), "launch_gemv");
  require(cudaDeviceSynchronize(), "gemv");
  const auto got = to_host<float>(a.out, out.size());
  double error = 0, size = 0;
  for (int r = 0; r < rows; ++r) {
    std::vector<float> row(columns);
    for (int c = 0; c < columns; ++c) row[c] = to_float(BFloat16{x[size_t(r) * stride + c]});
    const auto y = multiply(w, row);
    const auto z = multiply(up, row);
    for (int i = 0; i < outputs; ++i) {
      double expected = y[i] + bias[i];
      if (op == GemvOp::add) expected += out[size_t(r) * outputs + i];
      if (op == GemvOp::silu_mul) expected = y[i] / (1 + std::exp(-y[i])) * z[i];
      error += std::pow(got[size_t(r) * outputs + i] - expected, 2);
      size += expected * expected;
    }
  }
  return std::sqrt(error / size);
}

template <typename Run>
double median_us(int repeats, const Run& run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < repeats + 3; ++i) {
    cudaEventRecord(begin);
    run();
    cudaEventRecord(end);
    require(cudaEventSynchronize(end), "timed run");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 3) times.push_back(ms * 1000);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

__global__ void fill_random(uint32_t* words, size_t count, uint32_t mask, uint32_t set) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761U + 12345U;
    x ^= x >> 15, x *= 2246822519U, x ^= x >> 13, x *= 3266489917U, x ^= x >> 16;
    words[i] = (x & mask) | set;
  }
}

/// Random bytes that are small finite numbers in the given format.
void* random_weight(size_t elements, bool is_f8) {
  const size_t bytes = elements * (is_f8 ? 1 : 2);
  void* pointer = device_bytes(bytes);
  // e4m3: exponents below 8; bf16: magnitudes under 2^-3.
  fill_random<<<1024, 256>>>(static_cast<uint32_t*>(pointer), bytes / 4,
                             is_f8 ? 0xBFBFBFBFU : 0xBCFFBCFFU, 0);
  require(cudaDeviceSynchronize(), "fill");
  return pointer;
}

void time_decode(const char* name, const Shape& shape, int vocabulary, bool weight_f8, bool kv_f8,
                 int rows, int context, int repeats, int multiprocessors, double bandwidth) {
  const int max_pages = (context + 31) / 32;
  const size_t cache = size_t(rows) * max_pages * shape.kv_heads * 32 * 128;
  std::vector<float> tiny(size_t(1) << 16, 1.0F / 4096);
  float* scales = to_device(tiny);
  float* ones = to_device(std::vector<float>(shape.hidden, 1.0F));
  DecodeLayers layers;
  double bytes = 0;
  for (int l = 0; l < shape.layers; ++l) {
    DecodeLayer& d = layers.layers[l];
    const auto weight = [&](int64_t r, int64_t c) {
      bytes += double(r) * c * (weight_f8 ? 1 : 2);
      return random_weight(size_t(r * c), weight_f8);
    };
    d.input_layernorm = d.post_attention_layernorm = d.q_norm = d.k_norm = ones;
    d.weights[0] = weight((shape.heads + 2 * shape.kv_heads) * 128, shape.hidden);
    d.weights[1] = weight(shape.hidden, shape.heads * 128);
    d.weights[2] = weight(shape.intermediate, shape.hidden);
    d.weights[3] = weight(shape.hidden, shape.intermediate);
    d.up = weight(shape.intermediate, shape.hidden);
    for (const float*& s : d.scales) s = scales;
    d.up_scales = scales;
    d.keys = random_weight(cache, kv_f8);
    d.values = random_weight(cache, kv_f8);
    d.key_scales = d.value_scales = to_device(std::vector<float>(cache / 128, 0.01F));
    bytes += 2.0 * rows * context * shape.kv_heads * 128 * (kv_f8 ? 1 : 2);
  }
  std::vector<int32_t> table(size_t(rows) * max_pages), slots(rows);
  for (size_t i = 0; i < table.size(); ++i) table[i] = int(i);
  for (int r = 0; r < rows; ++r)
    slots[r] = (r * max_pages + (context - 1) / 32) * 32 + (context - 1) % 32;
  DecodeArguments a;
  a.num_layers = shape.layers, a.rows = rows, a.hidden_size = shape.hidden;
  a.intermediate_size = shape.intermediate, a.num_heads = shape.heads;
  a.num_kv_heads = shape.kv_heads, a.weight_is_f8 = weight_f8, a.kv_is_f8 = kv_f8;
  a.hidden = to_device(std::vector<float>(size_t(rows) * shape.hidden, 0.5F));
  a.cosines = to_device(std::vector<float>(rows * 64, 0.8F));
  a.sines = to_device(std::vector<float>(rows * 64, 0.6F));
  a.slots = to_device(slots);
  a.context_length = to_device(std::vector<int32_t>(rows, context));
  a.page_table = to_device(table), a.max_pages = max_pages;
  a.workspace = device_bytes(decode_workspace_bytes());
  require(cudaMemset(a.workspace, 0, decode_workspace_bytes()), "memset");

  GemvArguments head;
  head.x = random_weight(size_t(rows) * shape.hidden, false);
  head.x_stride = shape.hidden, head.rows = rows;
  head.weight = random_weight(size_t(vocabulary) * shape.hidden, false);
  head.out = device_bytes(size_t(rows) * vocabulary * 4), head.out_stride = vocabulary;
  head.outputs = vocabulary, head.columns = shape.hidden, head.out_is_f32 = true;
  const double head_bytes = double(vocabulary) * shape.hidden * 2;
  const double head_us =
      median_us(repeats, [&] { require(launch_gemv(head, multiprocessors, nullptr), "head"); });
  const double us = median_us(
      repeats, [&] { require(launch_decode(a, layers, multiprocessors, nullptr), "layers"); });
  std::printf(
      "%-4s rows %d context %4d weights %s kv %s: layers %7.1f us (%.0f GB/s, %2.0f %%), head "
      "%6.1f "
      "us (%2.0f %%), step %7.1f us = %6.0f tok/s in sum\n",
      name, rows, context, weight_f8 ? "fp8" : "bf16", kv_f8 ? "fp8" : "bf16", us, bytes / us / 1e3,
      100 * bytes / us / 1e3 / bandwidth, head_us, 100 * head_bytes / head_us / 1e3 / bandwidth,
      us + head_us, rows * 1e6 / (us + head_us));
  std::fflush(stdout);
}

__global__ void read_all(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = size_t{gridDim.x} * blockDim.x;
  size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const uint4 a = __ldcs(data + i), b = __ldcs(data + i + step), c = __ldcs(data + i + 2 * step),
                d = __ldcs(data + i + 3 * step);
    sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^
           d.w;
  }
  if (sum == 0x12345678U) *sink = sum;
}

template <typename Expect>
void check_all(const Expect& expect, int sms) {
  for (const bool f8 : {false, true}) {
    for (const auto& [rows, outputs, columns] :
         {std::array{1, 16, 128}, std::array{3, 100, 384}, std::array{8, 1000, 2048},
          std::array{5, 4099, 1152}, std::array{2, 40, 9728}}) {
      for (const GemvOp op : {GemvOp::store, GemvOp::add, GemvOp::silu_mul}) {
        expect("gemv " + std::string(f8 ? "fp8 " : "bf16 ") + std::to_string(rows) + " x " +
                   std::to_string(outputs) + " x " + std::to_string(columns) + " op " +
                   std::to_string(int(op)),
               check_gemv(rows, outputs, columns, f8, op, sms), 1e-5);
      }
    }
  }
  const Shape demo{384, 1024, 4, 2, 3};
  const Shape grouped{512, 1280, 8, 2, 2};
  const Shape tall{2560, 4864, 32, 8, 1};
  const Shape wide{1024, 9728, 4, 4, 1};
  for (const bool f8 : {false, true}) {
    for (const bool kv_f8 : {false, true}) {
      // Activations are rounded to bf16 in one place or another: each product differs by up to
      // 2^-8 of its operands' size. From the second layer on, keys and values differ likewise, and
      // some of them fall on the other side of a step of e4m3, 6 to 12 % away.
      const double limit = kv_f8 ? 3e-2 : 8e-3;
      const std::string tag = std::string(f8 ? "fp8" : "bf16") + "/" + (kv_f8 ? "fp8" : "bf16");
      expect("decode " + tag + " demo, 1 row", check_decode(demo, 1, {147}, f8, kv_f8, true, sms),
             limit);
      expect("decode " + tag + " demo, first token",
             check_decode(demo, 1, {1}, f8, kv_f8, true, sms), limit);
      expect("decode " + tag + " demo, 3 rows",
             check_decode(demo, 3, {5, 333, 64}, f8, kv_f8, false, sms), limit);
      expect("decode " + tag + " groups of 4, 8 rows",
             check_decode(grouped, 8, {1, 2, 31, 32, 33, 65, 700, 1500}, f8, kv_f8, true, sms),
             limit);
      expect("decode " + tag + " demo, 2 rows, long",
             check_decode(demo, 2, {5003, 2100}, f8, kv_f8, true, sms), limit);
      expect("decode " + tag + " on 7 multiprocessors, 6 rows",
             check_decode(demo, 6, {300, 1, 17, 16, 900, 44}, f8, kv_f8, true, 7), limit);
      expect("decode " + tag + " on 7 multiprocessors, 2 rows",
             check_decode(demo, 2, {300, 17}, f8, kv_f8, true, 7), limit);
      expect("decode " + tag + " groups of 4 on 9 multiprocessors, 1 row",
             check_decode(grouped, 1, {400}, f8, kv_f8, true, 9), limit);
      expect("decode " + tag + " of wide rows, 2 rows",
             check_decode(wide, 2, {90, 800}, f8, kv_f8, true, sms), limit);
      expect("decode " + tag + " of wide rows, 8 rows",
             check_decode(wide, 8, {9, 8, 7, 6, 5, 4, 3, 2}, f8, kv_f8, true, sms), limit);
    }
  }

  expect("decode fp8/bf16 rows of 4B", check_decode(tall, 2, {100, 1023}, true, false, true, sms),
         4e-3);
}

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 30;
  const std::string part = argc > 2 ? argv[2] : "";
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, 0), "no device");
  const int sms = properties.multiProcessorCount;
  require(prepare_gemv(), "prepare_gemv");
  require(prepare_decode(), "prepare_decode");
  std::printf("%s, %d multiprocessors\n", properties.name, sms);

  bool good = true;
  const auto expect = [&](const std::string& what, double error, double limit) {
    const bool ok = error >= 0 && error <= limit;
    good = good && ok;
    std::printf("%s %-60s %.2e (limit %.0e)\n", ok ? "ok  " : "FAIL", what.c_str(), error, limit);
    std::fflush(stdout);
  };
  if (part.empty() || part == "check") check_all(expect, sms);
  std::printf(good ? "all correct\n" : "SOME CHECKS FAILED\n");
  if (part == "check") return good ? 0 : 1;

  const size_t bytes = size_t{4} << 30;
  void* data = random_weight(bytes / 2, false);
  auto* sink = static_cast<uint32_t*>(device_bytes(4));
  const double read_us = median_us(
      10, [&] { read_all<<<sms * 8, 512>>>(static_cast<const uint4*>(data), bytes / 16, sink); });
  const double bandwidth = bytes / read_us / 1e3;
  std::printf("read-only bandwidth %.0f GB/s\n", bandwidth);
  cudaFree(data);
  const Shape two{2048, 6144, 16, 8, 28};
  const Shape four{2560, 9728, 32, 8, 36};
  if (part == "brief") {
    for (const int rows : {1, 2, 8}) {
      time_decode("2B", two, 151936, true, false, rows, 846, repeats, sms, bandwidth);
      time_decode("4B", four, 151936, true, false, rows, 846, repeats, sms, bandwidth);
    }
    return good ? 0 : 1;
  }
  for (const int rows : {1, 4, 8}) {
    time_decode("2B", two, 151936, true, false, rows, 846, repeats, sms, bandwidth);
  }
  time_decode("2B", two, 151936, true, true, 1, 846, repeats, sms, bandwidth);
  time_decode("2B", two, 151936, true, false, 1, 4096, repeats, sms, bandwidth);
  time_decode("2B", two, 151936, false, false, 1, 846, repeats, sms, bandwidth);
  for (const int rows : {1, 8}) {
    time_decode("4B", four, 151936, true, false, rows, 846, repeats, sms, bandwidth);
  }
  return good ? 0 : 1;
}
