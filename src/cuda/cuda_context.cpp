#include "cuda/cuda_context.h"

#include <algorithm>

#include <fmt/format.h>

#include "cuda/attention_prefill.h"
#include "cuda/attention_vision.h"
#include "cuda/decode_layers.h"
#include "cuda/gemm.h"
#include "cuda/gemm_w8a8.h"
#include "cuda/gemv.h"
#include "glimpse/error.h"

namespace glimpse::cuda {

void require(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return;
  throw Error(ErrorCode::device,
              fmt::format("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error)),
              "start again; `glimpse doctor` tests the card and its driver");
}

CardInfo read_card(int device) {
  CardInfo card;
  card.device = device;
  cudaDeviceProp properties{};
  require(cudaGetDeviceProperties(&properties, device), "reading the card's properties");
  card.name = properties.name;
  card.major = properties.major;
  card.minor = properties.minor;
  card.num_multiprocessors = properties.multiProcessorCount;
  card.shared_bytes_per_multiprocessor = static_cast<int>(properties.sharedMemPerMultiprocessor);
  card.shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
  require(cudaDriverGetVersion(&card.driver_version), "asking for the driver's version");
  card.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return card;
}

std::optional<CardMemory> read_memory(int device) {
  char bus_id[32] = "";
  require(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device), "reading the card's address");
  return read_card_memory(bus_id);
}

CudaContext::CudaContext(const CardInfo& card, bool plain_kernels_only) : card_(card) {
  std::ranges::fill(enabled_, !plain_kernels_only);
  require(cudaSetDevice(card.device), "choosing the card");
  require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  constexpr int kFirstThatOverlaps = 9;
  overlaps_ = card.major >= kFirstThatOverlaps && kernels_can_wait();
  sampling_workspace_ = allocate_zeros(sampling_workspace_bytes(), "the sampling workspace");
  decode_workspace_ = allocate_zeros(decode_workspace_bytes(), "the decode workspace");
  gemm_workspace_ = allocate_zeros(
      gemm_workspace_bytes({card.num_multiprocessors, card.shared_bytes_per_multiprocessor}),
      "the workspace of matrix products");
  require(prepare_gemv(), "preparing the streamed product");
  require(prepare_decode(), "preparing the fused decoder");
  require(prepare_gemm(), "preparing matrix products");
  require(prepare_w8a8(), "preparing matrix products in FP8");
  require(prepare_attention_prefill(), "preparing prefill attention");
  require(prepare_attention_vision(), "preparing vision attention");
}

CudaContext::~CudaContext() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

void CudaContext::make_current() const {
  thread_local int current = -1;
  if (current == card_.device) return;
  require(cudaSetDevice(card_.device), "choosing the card");
  current = card_.device;
}

Buffer CudaContext::allocate_zeros(int64_t num_bytes, std::string_view name) const {
  Buffer buffer = allocate(num_bytes, name);
  require(cudaMemsetAsync(buffer.data(), 0, static_cast<size_t>(num_bytes), stream_),
          fmt::format("clearing {}", name));
  return buffer;
}

Buffer CudaContext::allocate(int64_t num_bytes, std::string_view name) const {
  make_current();
  void* data = nullptr;
  const auto bytes = static_cast<size_t>(std::max<int64_t>(num_bytes, 1));
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: the caller may ask for less
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    require(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory");
    throw Error(ErrorCode::out_of_memory,
                fmt::format("{} needs {} MiB of GPU memory, {} MiB of {} MiB are free", name,
                            (num_bytes + (1 << 20) - 1) >> 20, free_bytes >> 20, total_bytes >> 20),
                "close other programs that use the GPU, or lower --context or --max-pixels");
  }
  require(error, fmt::format("allocating {}", name));
  return {static_cast<std::byte*>(data), num_bytes, Device::cuda,
          [](std::byte* memory) { cudaFree(memory); }};
}

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Element::f32;
    case DType::f16:
      return Element::f16;
    case DType::bf16:
      return Element::bf16;
    case DType::f8_e4m3:
      return Element::f8;
    default:
      break;
  }
  check(false, "kernels take floating-point elements only");
  return Element::f32;
}

Rows rows_of(const Tensor& tensor) {
  Rows rows;
  rows.data = tensor.raw();
  rows.element = element_of(tensor.dtype());
  if (tensor.rank() == 3) {
    rows.token_stride = tensor.stride(0);
    rows.head_stride = tensor.stride(1);
    rows.heads = tensor.size(1);
  } else {
    rows.token_stride = tensor.row_stride();
  }
  return rows;
}

}  // namespace glimpse::cuda
