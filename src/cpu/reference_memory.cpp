// Host memory, and weights as they are: linear parts stay where the file has them.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "cpu/elements.h"
#include "cpu/reference_backend.h"

namespace glimpse {

Buffer ReferenceBackend::allocate(int64_t num_bytes, std::string_view name) {
  constexpr size_t kAlignment = 4096;
  const size_t rounded =
      (static_cast<size_t>(num_bytes) + kAlignment - 1) / kAlignment * kAlignment;
  auto* data =
      static_cast<std::byte*>(std::aligned_alloc(kAlignment, std::max(rounded, kAlignment)));
  if (data == nullptr) {
    throw Error(ErrorCode::out_of_memory,
                fmt::format("{} needs {} MiB of memory, which the system does not give", name,
                            num_bytes >> 20),
                "close other programs, or lower --context or --max-pixels");
  }
  return {data, num_bytes, Device::cpu, [](std::byte* bytes) { std::free(bytes); }};
}

void ReferenceBackend::upload(std::span<const std::byte> bytes, Tensor to) {
  check(to.is_contiguous() && static_cast<int64_t>(bytes.size()) == to.num_bytes(),
        "upload: the sizes differ");
  if (!bytes.empty()) std::memcpy(to.raw(), bytes.data(), bytes.size());
}

void ReferenceBackend::download(Tensor from, std::span<std::byte> bytes) {
  check(from.is_contiguous() && static_cast<int64_t>(bytes.size()) == from.num_bytes(),
        "download: the sizes differ");
  if (!bytes.empty()) std::memcpy(bytes.data(), from.raw(), bytes.size());
}

void ReferenceBackend::zero(Tensor tensor) {
  check(tensor.is_contiguous(), "zero: the tensor is not contiguous");
  if (tensor.num_bytes() > 0) {
    std::memset(static_cast<void*>(tensor.raw()), 0, static_cast<size_t>(tensor.num_bytes()));
  }
}

LinearWeight ReferenceBackend::prepare(std::span<const LinearPart> parts, LinearLayout, Arena&) {
  return {.parts = {parts.begin(), parts.end()}};
}

Tensor ReferenceBackend::prepare(Tensor host, DType dtype, Arena& arena) {
  if (host.dtype() == dtype) return host;
  check(dtype == DType::f32 || dtype == DType::bf16, "tables become f32 or bf16");
  std::array<int64_t, 4> shape{};
  std::copy(host.shape().begin(), host.shape().end(), shape.begin());
  Tensor out = host.rank() == 1 ? arena.allocate(dtype, {shape[0]})
                                : arena.allocate(dtype, {host.num_rows(), host.size(-1)});
  if (arena.is_measuring()) return out;
  dispatch_weight(host.dtype(), [&]<typename From>() {
    dispatch_activation(dtype, [&]<typename To>() {
      const From* from = host.data<From>();
      for (To& to : out.span<To>()) store(to_float(*from++), to);
    });
  });
  return out;
}

void ReferenceBackend::do_copy(Tensor from, Tensor to) {
  if (from.dtype() == to.dtype()) {
    const auto row_bytes = static_cast<size_t>(from.size(-1) * bytes_of(from.dtype()));
    const int64_t rows = from.num_rows();
    const auto at = [](const Tensor& x, int64_t i) {
      const int64_t offset = x.rank() == 1 ? 0
                             : x.rank() == 3
                                 ? i / x.size(1) * x.stride(0) + i % x.size(1) * x.stride(1)
                                 : i * x.row_stride();
      return x.raw() + offset * bytes_of(x.dtype());
    };
    for (int64_t i = 0; i < rows; ++i) std::memmove(at(to, i), at(from, i), row_bytes);
    return;
  }
  dispatch_two_activations(from.dtype(), to.dtype(), [&]<typename From, typename To>() {
    for (int64_t i = 0; i < from.num_rows(); ++i) {
      const From* source = row_of<From>(from, i);
      To* target = row_of<To>(to, i);
      for (int64_t j = 0; j < from.size(-1); ++j) store(to_float(source[j]), target[j]);
    }
  });
}

void ReferenceBackend::do_gather_rows(Tensor table, Tensor indices, Tensor out) {
  dispatch_weight(table.dtype(), [&]<typename From>() {
    dispatch_activation(out.dtype(), [&]<typename To>() {
      for (int64_t i = 0; i < out.size(0); ++i) {
        const int32_t index = indices.data<int32_t>()[i];
        check(index >= 0 && index < table.size(0), "gather_rows: an index is outside the table");
        const From* from = row_of<From>(table, index);
        To* to = row_of<To>(out, i);
        for (int64_t j = 0; j < out.size(1); ++j) store(to_float(from[j]), to[j]);
      }
    });
  });
}

void ReferenceBackend::do_begin_step(const StepBeginning& from, Tensor hidden, Tensor cosines,
                                     Tensor sines) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < hidden.size(0); ++i) {
    const int32_t id = from.ids.data<int32_t>()[i];
    const bool is_last = id < 0;
    check(!is_last || (!from.chosen.empty() && -1 - id < from.chosen.size(0)),
          "begin_step: no such token was chosen");
    ids.push_back(is_last ? from.chosen.data<int32_t>()[-1 - id] : id);
  }
  gather_rows(from.table, Tensor(ids.data(), DType::i32, device(), {hidden.size(0)}), hidden);
  rotary_table(from.positions, from.inverse_frequencies, from.axes, cosines, sines);
}

void ReferenceBackend::do_scatter_rows(Tensor rows, Tensor indices, Tensor out) {
  dispatch_two_activations(rows.dtype(), out.dtype(), [&]<typename From, typename To>() {
    for (int64_t i = 0; i < rows.size(0); ++i) {
      const int32_t index = indices.data<int32_t>()[i];
      check(index >= 0 && index < out.size(0), "scatter_rows: an index is outside the output");
      const From* from = row_of<From>(rows, i);
      To* to = row_of<To>(out, index);
      for (int64_t j = 0; j < rows.size(1); ++j) store(to_float(from[j]), to[j]);
    }
  });
}

void ReferenceBackend::do_add_rows(Tensor rows, Tensor indices, Tensor out) {
  dispatch_two_activations(rows.dtype(), out.dtype(), [&]<typename From, typename To>() {
    for (int64_t i = 0; i < rows.size(0); ++i) {
      const int32_t index = indices.data<int32_t>()[i];
      check(index >= 0 && index < out.size(0), "add_rows: an index is outside the output");
      const From* from = row_of<From>(rows, i);
      To* to = row_of<To>(out, index);
      for (int64_t j = 0; j < rows.size(1); ++j) store(to_float(to[j]) + to_float(from[j]), to[j]);
    }
  });
}

void ReferenceBackend::do_blend_rows(Tensor table, Tensor indices, Tensor weights, Tensor out) {
  dispatch_two_activations(table.dtype(), out.dtype(), [&]<typename From, typename To>() {
    for (int64_t i = 0; i < out.size(0); ++i) {
      const int32_t* index = indices.data<int32_t>() + 4 * i;
      const float* weight = weights.data<float>() + 4 * i;
      To* to = row_of<To>(out, i);
      const From* rows[4];
      for (int c = 0; c < 4; ++c) {
        check(index[c] >= 0 && index[c] < table.size(0),
              "blend_rows: an index is outside the table");
        rows[c] = row_of<From>(table, index[c]);
      }
      for (int64_t j = 0; j < out.size(1); ++j) {
        float sum = 0;
        for (int c = 0; c < 4; ++c) sum += weight[c] * to_float(rows[c][j]);
        store(to_float(to[j]) + sum, to[j]);
      }
    }
  });
}

void ReferenceBackend::do_cut_patches(Tensor pixels, Tensor table, const PatchOrder& order,
                                      Tensor out) {
  const int64_t height = pixels.size(1);
  const int64_t width = pixels.size(2);
  const int64_t area = order.merge * order.merge;
  const int64_t blocks_per_row = width / order.side / order.merge;
  const int64_t patches_per_slice = height / order.side * (width / order.side);
  dispatch_activation(out.dtype(), [&]<typename To>() {
    for (int64_t row = 0; row < out.size(0); ++row) {
      const int64_t slice = (order.first + row) / patches_per_slice;
      const int64_t patch = (order.first + row) % patches_per_slice;
      const int64_t block = patch / area;
      const int64_t top =
          (block / blocks_per_row * order.merge + patch % area / order.merge) * order.side;
      const int64_t left =
          (block % blocks_per_row * order.merge + patch % order.merge) * order.side;
      To* to = row_of<To>(out, row);
      for (int64_t channel = 0; channel < 3; ++channel) {
        const float* values = table.data<float>() + channel * 256;
        for (int64_t t = 0; t < order.frames; ++t) {
          const int64_t frame = std::min(slice * order.frames + t, pixels.size(0) - 1);
          for (int64_t y = top; y < top + order.side; ++y) {
            const uint8_t* from =
                pixels.data<uint8_t>() + ((frame * height + y) * width + left) * 3;
            for (int64_t x = 0; x < order.side; ++x) store(values[from[x * 3 + channel]], *to++);
          }
        }
      }
    }
  });
}

}  // namespace glimpse
