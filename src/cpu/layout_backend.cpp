// A GPU's weight layout where there is no GPU: memory plans measure with it. It is a CPU backend
// only because it must be some backend; what it adds is how weights are carved.
#include "backend/weight_layout.h"
#include "cpu/reference_backend.h"

namespace glimpse {
namespace {

class LayoutBackend final : public ReferenceBackend {
 public:
  [[nodiscard]] Device device() const override { return Device::cuda; }
  [[nodiscard]] std::string description() const override { return "a GPU's weight layout"; }
  [[nodiscard]] Buffer allocate(int64_t, std::string_view) override {
    check(false, "a weight layout has no memory");
    return {};
  }
  [[nodiscard]] LinearWeight prepare(std::span<const LinearPart> parts, LinearLayout,
                                     Arena& arena) override {
    check(arena.is_measuring(), "a weight layout has no memory");
    LinearWeight weight;
    for (const StackedParts& stacked : stack_parts(parts, arena)) {
      weight.parts.push_back(stacked.device);
    }
    return weight;
  }
  [[nodiscard]] Tensor prepare(Tensor host, DType dtype, Arena& arena) override {
    check(arena.is_measuring(), "a weight layout has no memory");
    return carve_table(host, dtype, arena);
  }
};

}  // namespace

std::unique_ptr<Backend> create_layout_backend() {
  return std::make_unique<LayoutBackend>();
}

}  // namespace glimpse
