// What the shares in our reports are given against: the card's read-only bandwidth, the rate of its
// bf16 mma.sync from registers alone, and the bytes of a bare CUDA context. And the ballast that
// makes a large card a small one.
//   card measure        one JSON object on standard output
//   card ballast MIB    takes all memory but MIB, says "ready", holds it until standard input ends
//   card context        makes a bare context, says "ready", holds it until standard input ends
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

// Each thread reads 64 bytes a round; the sum is compared so that no load is dropped.
__global__ void __launch_bounds__(512) read_all(const uint4* from, int64_t count, uint32_t* out) {
  const int64_t stride = int64_t{blockDim.x} * gridDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  uint32_t bits = 0;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) values[k] = __ldcs(from + i + k * stride);
#pragma unroll
    for (const uint4& value : values) bits ^= value.x ^ value.y ^ value.z ^ value.w;
  }
  if (bits == 0x12345678U) *out = bits;
}

constexpr int kRounds = 4096;
constexpr int kSums = 8;  // independent products of a warp: enough to hide their latency

// Two warps a scheduler, products of numbers around 1 as real data has (zeros draw less power).
__global__ void __launch_bounds__(256) multiply_registers(float* out, uint32_t seed) {
  float sums[kSums][4] = {};
  const auto number = [&](uint32_t i) {
    uint32_t bits = (seed + threadIdx.x * 8 + i) * 0x9E3779B9U;
    bits ^= bits >> 15;
    return (bits & 0x807F807FU) | 0x3F003F00U;
  };
  const uint32_t a[4] = {number(0), number(1), number(2), number(3)};
  const uint32_t b[2] = {number(4), number(5)};
#pragma unroll 1
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (auto& sum : sums) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
          "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }
  float total = 0;
  for (const auto& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  if (total == 1234.5F) *out = total;
}

/// Median milliseconds of one launch.
template <typename Launch>
float median_ms(const Launch& launch) {
  constexpr int kRuns = 9;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  must(cudaEventCreate(&begin), "making an event");
  must(cudaEventCreate(&end), "making an event");
  std::vector<float> times;
  for (int i = 0; i < kRuns + 2; ++i) {
    must(cudaEventRecord(begin), "recording an event");
    launch();
    must(cudaEventRecord(end), "recording an event");
    must(cudaEventSynchronize(end), "waiting for a kernel");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "reading a time");
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

int measure() {
  cudaDeviceProp card{};
  must(cudaGetDeviceProperties(&card, 0), "reading the card");
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  must(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory");
  const size_t bytes = std::min(size_t{4} << 30, free_bytes / 4 * 3) >> 20 << 20;
  void* memory = nullptr;
  void* out = nullptr;
  must(cudaMalloc(&memory, bytes), "allocating the memory to read");
  must(cudaMalloc(&out, 4), "allocating a word");
  must(cudaMemset(memory, 0x5A, bytes), "filling the memory");
  const int blocks = card.multiProcessorCount * 4;
  const float read_ms = median_ms([&] {
    read_all<<<blocks, 512>>>(static_cast<const uint4*>(memory),
                              static_cast<int64_t>(bytes / sizeof(uint4)),
                              static_cast<uint32_t*>(out));
  });
  const int mma_blocks = card.multiProcessorCount * 2;
  const float mma_ms =
      median_ms([&] { multiply_registers<<<mma_blocks, 256>>>(static_cast<float*>(out), 1); });
  must(cudaDeviceSynchronize(), "measuring");
  const double operations = 2.0 * 16 * 8 * 16 * kSums * kRounds * 8 * mma_blocks;
  std::printf(
      "{\"card\": \"%s\", \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d, "
      "\"total_bytes\": %zu, \"read_gb_per_s\": %.1f, \"mma_bf16_tflop_per_s\": %.1f}\n",
      card.name, card.major, card.minor, card.multiProcessorCount, total_bytes,
      static_cast<double>(bytes) / read_ms / 1e6, operations / mma_ms / 1e9);
  return 0;
}

int hold() {
  std::puts("ready");
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  return 0;
}

int hold_ballast(const char* leave) {
  constexpr size_t kMiB = 1 << 20;
  const size_t leave_bytes = std::strtoull(leave, nullptr, 10) * kMiB;
  std::vector<void*> ballast;
  // Large pieces first, then ever smaller ones: the last step leaves less than 2 MiB too much.
  for (size_t piece = size_t{8192} * kMiB; piece >= 2 * kMiB; piece /= 2) {
    for (;;) {
      size_t free_bytes = 0;
      size_t total_bytes = 0;
      must(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory");
      void* memory = nullptr;
      if (free_bytes < leave_bytes + piece || cudaMalloc(&memory, piece) != cudaSuccess) break;
      ballast.push_back(memory);
    }
  }
  return hold();
}

}  // namespace

int main(int argc, char** argv) {
  const char* command = argc > 1 ? argv[1] : "";
  if (std::strcmp(command, "measure") == 0) return measure();
  if (std::strcmp(command, "ballast") == 0 && argc > 2) return hold_ballast(argv[2]);
  if (std::strcmp(command, "context") == 0) {
    must(cudaFree(nullptr), "making a context");
    return hold();
  }
  std::fprintf(stderr, "usage: card measure | ballast MIB | context\n");
  return 1;
}
