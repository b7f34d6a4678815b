// Norms, activation functions, rotary.
#include <cmath>

#include "cpu/elements.h"
#include "cpu/reference_backend.h"

namespace glimpse {
namespace {

float silu(float x) {
  return x / (1.0F + std::exp(-x));
}

float gelu_tanh(float x) {
  constexpr float kSqrtTwoOverPi = 0.7978845608F;
  return 0.5F * x * (1.0F + std::tanh(kSqrtTwoOverPi * (x + 0.044715F * x * x * x)));
}

float gelu_erf(float x) {
  return 0.5F * x * (1.0F + std::erf(x * 0.70710678118F));
}

}  // namespace

void ReferenceBackend::do_add(Tensor a, Tensor b, Tensor out) {
  dispatch_activation(a.dtype(), [&]<typename A>() {
    dispatch_two_activations(b.dtype(), out.dtype(), [&]<typename B, typename To>() {
      for (int64_t i = 0; i < out.num_rows(); ++i) {
        const A* x = row_of<A>(a, i);
        const B* y = row_of<B>(b, i);
        To* to = row_of<To>(out, i);
        for (int64_t j = 0; j < out.size(-1); ++j) store(to_float(x[j]) + to_float(y[j]), to[j]);
      }
    });
  });
}

void ReferenceBackend::do_rms_norm(Tensor x, Tensor weight, float epsilon, Tensor out) {
  const int64_t dim = x.size(-1);
  const float* w = weight.data<float>();
  dispatch_two_activations(x.dtype(), out.dtype(), [&]<typename From, typename To>() {
    for (int64_t i = 0; i < x.num_rows(); ++i) {
      const From* from = row_of<From>(x, i);
      To* to = row_of<To>(out, i);
      float sum = 0;
      for (int64_t j = 0; j < dim; ++j) sum += to_float(from[j]) * to_float(from[j]);
      const float factor = 1.0F / std::sqrt(sum / static_cast<float>(dim) + epsilon);
      for (int64_t j = 0; j < dim; ++j) store(to_float(from[j]) * factor * w[j], to[j]);
    }
  });
}

void ReferenceBackend::do_rms_norm_rows(Tensor x, Tensor indices, Tensor weight, float epsilon,
                                        Tensor out) {
  for (int64_t i = 0; i < out.size(0); ++i) {
    const int32_t row = indices.data<int32_t>()[i];
    check(row >= 0 && row < x.size(0), "rms_norm_rows: an index is outside the rows");
    rms_norm(x.slice(0, row, 1), weight, epsilon, out.slice(0, i, 1));
  }
}

void ReferenceBackend::do_layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon,
                                     Tensor out) {
  const int64_t dim = x.size(-1);
  const float* w = weight.data<float>();
  const float* b = bias.data<float>();
  dispatch_two_activations(x.dtype(), out.dtype(), [&]<typename From, typename To>() {
    for (int64_t i = 0; i < x.num_rows(); ++i) {
      const From* from = row_of<From>(x, i);
      To* to = row_of<To>(out, i);
      float sum = 0;
      for (int64_t j = 0; j < dim; ++j) sum += to_float(from[j]);
      const float mean = sum / static_cast<float>(dim);
      float squares = 0;
      for (int64_t j = 0; j < dim; ++j) {
        const float difference = to_float(from[j]) - mean;
        squares += difference * difference;
      }
      const float factor = 1.0F / std::sqrt(squares / static_cast<float>(dim) + epsilon);
      for (int64_t j = 0; j < dim; ++j) {
        store((to_float(from[j]) - mean) * factor * w[j] + b[j], to[j]);
      }
    }
  });
}

void ReferenceBackend::do_silu_mul(Tensor gate_up, Tensor out) {
  dispatch_activation(out.dtype(), [&]<typename T>() {
    for (int64_t i = 0; i < out.size(0); ++i) {
      const T* gate = row_of<T>(gate_up, i);
      const T* up = gate + out.size(1);
      T* to = row_of<T>(out, i);
      for (int64_t j = 0; j < out.size(1); ++j) {
        store(silu(to_float(gate[j])) * to_float(up[j]), to[j]);
      }
    }
  });
}

void ReferenceBackend::do_gelu(Tensor x, GeluKind kind, Tensor out) {
  dispatch_activation(x.dtype(), [&]<typename T>() {
    for (int64_t i = 0; i < x.num_rows(); ++i) {
      const T* from = row_of<T>(x, i);
      T* to = row_of<T>(out, i);
      for (int64_t j = 0; j < x.size(-1); ++j) {
        const float value = to_float(from[j]);
        store(kind == GeluKind::exact_erf ? gelu_erf(value) : gelu_tanh(value), to[j]);
      }
    }
  });
}

void ReferenceBackend::do_rotary_table(Tensor positions, Tensor inverse_frequencies, Tensor axes,
                                       Tensor cosines, Tensor sines) {
  for (int64_t t = 0; t < cosines.size(0); ++t) {
    for (int64_t i = 0; i < cosines.size(1); ++i) {
      const int32_t axis = axes.data<int32_t>()[i];
      check(axis >= 0 && axis < positions.size(0), "rotary_table: no such axis");
      const int32_t position = positions.data<int32_t>()[axis * positions.stride(0) + t];
      const float angle = static_cast<float>(position) * inverse_frequencies.data<float>()[i];
      row_of<float>(cosines, t)[i] = std::cos(angle);
      row_of<float>(sines, t)[i] = std::sin(angle);
    }
  }
}

void ReferenceBackend::do_rotate(Tensor x, Tensor cosines, Tensor sines, Tensor out) {
  const int64_t heads = x.size(1);
  const int64_t half = x.size(2) / 2;
  dispatch_activation(x.dtype(), [&]<typename T>() {
    for (int64_t i = 0; i < x.num_rows(); ++i) {
      const float* cosine = row_of<float>(cosines, i / heads);
      const float* sine = row_of<float>(sines, i / heads);
      const T* from = row_of<T>(x, i);
      T* to = row_of<T>(out, i);
      for (int64_t j = 0; j < half; ++j) {
        const float low = to_float(from[j]);
        const float high = to_float(from[j + half]);
        store(low * cosine[j] - high * sine[j], to[j]);
        store(high * cosine[j] + low * sine[j], to[j + half]);
      }
    }
  });
}

}  // namespace glimpse
