// The weights of a checkpoint by name, in one or many safetensors files, used where they are
// mapped. Small vectors that are needed in another dtype are converted into memory of the store.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mapped_file.h"
#include "model/safetensors.h"
#include "tensor/linear_weight.h"
#include "tensor/tensor.h"

namespace glimpse {

/// Owns the mapped files and everything it converted; tensors it returned are views of them.
/// Not thread-safe.
class WeightStore {
 public:
  /// Opens model.safetensors, or the shards that model.safetensors.index.json lists. Throws
  /// Error(not_found) or Error(bad_model).
  explicit WeightStore(const std::filesystem::path& directory);

  /// Checkpoints name the same tensors under different prefixes. Names here are the checkpoint's
  /// own behind these: "layers.0.input_layernorm.weight" is text_prefix() + that.
  [[nodiscard]] const std::string& text_prefix() const { return text_prefix_; }
  /// Empty when there is no vision tower in the files.
  [[nodiscard]] const std::string& vision_prefix() const { return vision_prefix_; }
  /// Full name of the output head, or empty when it is tied to the embedding.
  [[nodiscard]] const std::string& head_name() const { return head_name_; }

  [[nodiscard]] bool contains(std::string_view name) const;
  /// A host view of a tensor of exactly this shape and one of these dtypes. Throws
  /// Error(bad_model) naming the tensor, what was found and what was expected. More than two
  /// dimensions come back as [first, all others].
  [[nodiscard]] Tensor get(std::string_view name, std::initializer_list<int64_t> shape,
                           std::initializer_list<DType> dtypes) const;
  /// A floating-point tensor as f32: a view where it is stored so, else a copy the store keeps.
  [[nodiscard]] Tensor get_f32(std::string_view name, std::initializer_list<int64_t> shape);
  /// `module`.weight as [out, in] with its FP8 scales and, where the file has one, its bias.
  /// `stored_shape` where it is not [out, in].
  [[nodiscard]] LinearPart linear_part(std::string_view module, int64_t out_features,
                                       int64_t in_features,
                                       std::initializer_list<int64_t> stored_shape = {});

  /// The tensor behind a view, for messages.
  [[nodiscard]] std::string name_of_view(const Tensor& tensor) const;
  /// Asks the kernel to start reading all files.
  void prefetch() const;
  /// Lets go of the resident pages of a view: a GPU has its own copy.
  void release_pages(const Tensor& tensor) const;

  [[nodiscard]] int64_t num_tensors() const { return static_cast<int64_t>(tensors_.size()); }
  /// Elements of all tensors but FP8 scales.
  [[nodiscard]] int64_t num_parameters() const;
  /// Bytes of all tensors.
  [[nodiscard]] int64_t num_bytes() const;
  /// "fp8", "bf16", "f16" or "f32": what most of the bytes of the decoder's projections are.
  [[nodiscard]] std::string weight_format() const;

 private:
  [[nodiscard]] const StoredTensor& find(std::string_view name) const;
  void add_file(const std::filesystem::path& path);
  void open_shards(const std::filesystem::path& index_path);
  void resolve_prefixes();
  [[nodiscard]] Tensor view(const StoredTensor& stored, std::initializer_list<int64_t> shape) const;

  std::vector<MappedFile> files_;
  // Copies of tensors that the file puts at an address their elements cannot have.
  std::vector<std::vector<std::byte>> realigned_;
  std::unordered_map<std::string, StoredTensor> tensors_;
  std::string text_prefix_;
  std::string vision_prefix_;
  std::string head_name_;
  std::unordered_map<std::string, std::vector<float>> converted_;
};

}  // namespace glimpse
