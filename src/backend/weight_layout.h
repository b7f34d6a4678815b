// How a GPU's backend lays out weights, as arithmetic alone: the CUDA backend fills what this
// carves, and memory plans count it where no GPU is.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace glimpse {

/// Parts of one product that a GPU stacks into one matrix, and where that matrix is.
struct StackedParts {
  std::span<const LinearPart> parts;  // in host memory
  LinearPart device;  // weight [all rows, in] f8 or bf16, scales f32, bias f32 when one part has it
};

/// Stacks the rows of `parts` into as few matrices as their scale blocks allow, and takes their
/// memory from `arena`. FP8 stays as it is; every other format becomes BF16.
[[nodiscard]] std::vector<StackedParts> stack_parts(std::span<const LinearPart> parts,
                                                    Arena& arena);

/// Where a contiguous host table goes, as `dtype`.
[[nodiscard]] Tensor carve_table(const Tensor& host, DType dtype, Arena& arena);

/// Lays out weights in measuring arenas as the CUDA backend does. Allocates and computes nothing:
/// its other operations must not be called.
[[nodiscard]] std::unique_ptr<Backend> create_layout_backend();

}  // namespace glimpse
