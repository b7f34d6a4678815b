// One body per operation, run on every backend that this machine has and compared with the plain
// loops. Inputs are drawn with a fixed seed; views may be strided; outputs begin as NaN, so that an
// element nobody wrote is seen.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "backend/backend.h"
#include "cpu/cpu_backend.h"

namespace glimpse::testing {

/// "cpu" or "cuda"; throws as create_backend() does.
inline std::unique_ptr<Backend> make_backend(const std::string& name) {
  if (name == "cpu") return create_cpu_backend(2);
  return create_backend({.choice = BackendOptions::Choice::cuda});
}

/// Whether a backend can be made here; GPUs are rare where tests run.
inline bool has_backend(const std::string& name) {
  try {
    return make_backend(name) != nullptr;
  } catch (const Error&) {
    return false;
  }
}

class Operations : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!has_backend(GetParam()))
      GTEST_SKIP() << "this machine has no " << GetParam() << " backend";
    backend_ = make_backend(GetParam());
    reference_ = create_reference_backend();
  }

  /// The same numbers in host memory, for the reference, and on the device.
  struct Pair {
    Tensor host;
    Tensor device;
  };

  float draw(float spread = 1.0F) { return normal_(random_) * spread; }

  Pair pair_of(const std::vector<float>& values, DType dtype,
               std::initializer_list<int64_t> shape) {
    Pair pair = uninitialised(dtype, shape);
    for (size_t i = 0; i < values.size(); ++i) set(pair.host, i, values[i]);
    send(pair);
    return pair;
  }
  Pair random(DType dtype, std::initializer_list<int64_t> shape, float spread = 1.0F) {
    Pair pair = uninitialised(dtype, shape);
    for (int64_t i = 0; i < pair.host.num_elements(); ++i) {
      set(pair.host, static_cast<size_t>(i), draw(spread));
    }
    send(pair);
    return pair;
  }
  template <typename T>
  Pair numbers(const std::vector<T>& values, std::initializer_list<int64_t> shape) {
    Pair pair = uninitialised(kDTypeOf<T>, shape);
    std::copy(values.begin(), values.end(), pair.host.data<T>());
    send(pair);
    return pair;
  }
  /// Every float is NaN.
  Pair poisoned(DType dtype, std::initializer_list<int64_t> shape) {
    Pair pair = uninitialised(dtype, shape);
    std::fill_n(reinterpret_cast<uint8_t*>(pair.host.raw()), pair.host.num_bytes(), 0xFF);
    send(pair);
    return pair;
  }

  /// What the backend computed, as floats.
  std::vector<float> result(const Pair& pair) {
    Tensor copy = host_tensor(pair.host.dtype(), pair.host.num_bytes(), pair.host.shape());
    backend_->download(pair.device, {copy.raw(), static_cast<size_t>(copy.num_bytes())});
    return floats(copy);
  }

  static std::vector<float> floats(const Tensor& x) {
    std::vector<float> values;
    for (int64_t i = 0; i < x.num_elements(); ++i) {
      if (x.dtype() == DType::f32) values.push_back(x.data<float>()[i]);
      if (x.dtype() == DType::bf16) values.push_back(to_float(x.data<BFloat16>()[i]));
      if (x.dtype() == DType::i32) values.push_back(static_cast<float>(x.data<int32_t>()[i]));
      if (x.dtype() == DType::u16) values.push_back(static_cast<float>(x.data<uint16_t>()[i]));
    }
    return values;
  }

  /// max |difference| <= tolerance * max(|expected|, 1), every element a number.
  void expect_close(const Pair& pair, double tolerance) {
    const std::vector<float> expected = floats(pair.host);
    const std::vector<float> got = result(pair);
    double size = 1;
    for (const float x : expected) size = std::max(size, std::fabs(static_cast<double>(x)));
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_FALSE(std::isnan(expected[i])) << "the reference left element " << i << " unwritten";
      ASSERT_NEAR(got[i], expected[i], tolerance * size) << "element " << i << " of " << got.size();
    }
  }
  void expect_equal(const Pair& pair) { expect_close(pair, 0); }

  /// Rounding of an output of this dtype, and of a sum of `length` terms in f32 taken in another
  /// order: errors of n additions grow like sqrt(n) half units in the last place.
  static double tolerance(DType dtype, int64_t length) {
    const double output = dtype == DType::bf16 ? 0x1p-8 : 0x1p-22;
    return output + 8 * std::sqrt(static_cast<double>(length)) * 0x1p-24;
  }

  /// Both backends at once.
  template <typename Run>
  void run(const Run& body) {
    body(*reference_, [](const Pair& pair) { return pair.host; });
    body(*backend_, [](const Pair& pair) { return pair.device; });
    backend_->synchronize();
  }

  LinearWeight weight_of(Backend& backend, const std::vector<LinearPart>& parts,
                         LinearLayout layout) {
    if (&backend == reference_.get()) return backend.prepare(parts, layout, host_arena());
    Arena measure = Arena::measuring(backend.device());
    (void)backend.prepare(parts, layout, measure);
    arenas_.push_back(std::make_unique<Arena>(
        backend.allocate(std::max<int64_t>(measure.peak_bytes(), 1), "weights of a test"), "test"));
    return backend.prepare(parts, layout, *arenas_.back());
  }

  /// A part of a linear weight in host memory, FP8 with its scales.
  LinearPart linear_part(DType dtype, int64_t rows, int64_t columns, bool bias) {
    LinearPart part;
    part.weight =
        host_tensor(dtype, rows * columns * bytes_of(dtype), std::vector<int64_t>{rows, columns});
    const float spread = 1.0F / std::sqrt(static_cast<float>(columns));
    for (int64_t i = 0; i < rows * columns; ++i) {
      set(part.weight, static_cast<size_t>(i), draw(dtype == DType::f8_e4m3 ? 1.0F : spread));
    }
    if (dtype == DType::f8_e4m3) {
      const int64_t scale_rows = (rows + kScaleBlock - 1) / kScaleBlock;
      const int64_t scale_columns = (columns + kScaleBlock - 1) / kScaleBlock;
      part.scales = host_tensor(DType::f32, scale_rows * scale_columns * 4,
                                std::vector<int64_t>{scale_rows, scale_columns});
      for (float& scale : part.scales.span<float>()) {
        scale = spread * (0.5F + std::fabs(draw()));
      }
    }
    if (bias) {
      part.bias = host_tensor(DType::f32, rows * 4, std::vector<int64_t>{rows});
      for (float& value : part.bias.span<float>()) value = draw();
    }
    return part;
  }

  Tensor host_tensor(DType dtype, int64_t num_bytes, std::span<const int64_t> shape) {
    host_memory_.push_back(std::vector<std::byte>(static_cast<size_t>(num_bytes) + 64));
    auto address = reinterpret_cast<uintptr_t>(host_memory_.back().data());
    address = (address + 63) / 64 * 64;
    return {reinterpret_cast<void*>(address), dtype, Device::cpu, shape};
  }
  Tensor host_tensor(DType dtype, int64_t num_bytes, const std::vector<int64_t>& shape) {
    return host_tensor(dtype, num_bytes, std::span<const int64_t>(shape));
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> reference_;
  std::mt19937 random_{20261123};

 private:
  static void set(const Tensor& x, size_t i, float value) {
    if (x.dtype() == DType::f32) x.data<float>()[i] = value;
    if (x.dtype() == DType::bf16) x.data<BFloat16>()[i] = to_bfloat16(value);
    if (x.dtype() == DType::f16) x.data<Float16>()[i] = to_float16(value);
    if (x.dtype() == DType::f8_e4m3) x.data<Float8E4M3>()[i] = to_float8_e4m3(value);
  }
  Pair uninitialised(DType dtype, std::initializer_list<int64_t> shape) {
    Pair pair;
    const std::vector<int64_t> sizes(shape);
    int64_t bytes = bytes_of(dtype);
    for (const int64_t size : sizes) bytes *= size;
    pair.host = host_tensor(dtype, bytes, sizes);
    buffers_.push_back(backend_->allocate(std::max<int64_t>(bytes, 1), "a test's tensor"));
    pair.device = Tensor(buffers_.back().data(), dtype, backend_->device(), sizes);
    return pair;
  }
  void send(const Pair& pair) {
    backend_->upload({pair.host.raw(), static_cast<size_t>(pair.host.num_bytes())}, pair.device);
  }
  Arena& host_arena() {
    arenas_.push_back(
        std::make_unique<Arena>(reference_->allocate(1 << 20, "weights of a test"), "reference"));
    return *arenas_.back();
  }

  std::normal_distribution<float> normal_;
  std::vector<std::vector<std::byte>> host_memory_;
  std::vector<Buffer> buffers_;
  std::vector<std::unique_ptr<Arena>> arenas_;
};

}  // namespace glimpse::testing
