#include "model/weight_store.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include <fmt/ranges.h>

#include "base/json.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;

// The same tensors under the names of Qwen's releases, of fine-tuning toolkits and of text-only
// checkpoints; the first prefix whose probe exists counts.
constexpr std::string_view kTextPrefixes[] = {"model.language_model.",
                                              "language_model.model.",
                                              "model.language_model.model.",
                                              "language_model.",
                                              "model.",
                                              ""};
constexpr std::string_view kTextProbe = "embed_tokens.weight";
constexpr std::string_view kVisionPrefixes[] = {"model.visual.", "visual.", "model.model.visual."};
constexpr std::string_view kVisionProbe = "patch_embed.proj.weight";
constexpr std::string_view kHeadNames[] = {"lm_head.weight", "language_model.lm_head.weight",
                                           "model.lm_head.weight",
                                           "model.language_model.lm_head.weight"};

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr size_t kMaxShards = 10000;

[[noreturn]] void fail(const std::string& message) {
  throw Error(ErrorCode::bad_model, message,
              "the checkpoint is incomplete or contradicts its config.json");
}

std::vector<float> to_floats(const Tensor& tensor) {
  std::vector<float> result(static_cast<size_t>(tensor.num_elements()));
  dispatch_weight(tensor.dtype(), [&]<typename T>() {
    const std::span<T> source = tensor.span<T>();
    std::transform(source.begin(), source.end(), result.begin(), [](T x) { return to_float(x); });
  });
  return result;
}

int64_t blocks(int64_t features) {
  return (features + kScaleBlock - 1) / kScaleBlock;
}

}  // namespace

WeightStore::WeightStore(const fs::path& directory) {
  const fs::path single = directory / "model.safetensors";
  const fs::path index = directory / kIndexName;
  if (fs::exists(index)) {
    open_shards(index);
  } else if (fs::exists(single)) {
    add_file(single);
  } else {
    throw Error(
        ErrorCode::not_found,
        fmt::format("{} has neither model.safetensors nor {}", directory.string(), kIndexName),
        "Glimpse reads checkpoints in the safetensors format");
  }
  resolve_prefixes();
}

void WeightStore::add_file(const fs::path& path) {
  files_.emplace_back(path);
  for (StoredTensor& tensor : parse_safetensors(files_.back().bytes(), path.filename().string())) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.bytes.data());
    if (address % static_cast<uintptr_t>(bytes_of(tensor.dtype)) != 0) {
      realigned_.emplace_back(tensor.bytes.begin(), tensor.bytes.end());
      tensor.bytes = realigned_.back();
    }
    const std::string name = tensor.name;
    if (!tensors_.emplace(name, std::move(tensor)).second) {
      fail(fmt::format("tensor '{}' stands in more than one file", name));
    }
  }
}

void WeightStore::open_shards(const fs::path& index_path) {
  const Json index = read_json_file(index_path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object()) {
    fail(fmt::format("{} has no object 'weight_map'", kIndexName));
  }
  std::set<std::string> file_names;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) fail(fmt::format("{}: the file of '{}' is no name", kIndexName, name));
    file_names.insert(file.get<std::string>());
  }
  if (file_names.size() > kMaxShards) {
    fail(fmt::format("{} names {} files", kIndexName, file_names.size()));
  }
  for (const std::string& file_name : file_names) {
    // A name with a directory in it could point anywhere on this machine.
    if (fs::path(file_name).filename() != file_name || file_name.empty() || file_name == "..") {
      fail(fmt::format("{} names the file '{}', which is not in its directory", kIndexName,
                       file_name));
    }
    add_file(index_path.parent_path() / file_name);
  }
  for (const auto& [name, file] : map->items()) {
    if (!contains(name)) {
      fail(fmt::format("{} places '{}' in {}, which lacks it", kIndexName, name,
                       file.get<std::string>()));
    }
  }
}

void WeightStore::resolve_prefixes() {
  const auto resolve = [&](std::span<const std::string_view> prefixes, std::string_view probe) {
    const auto found = std::find_if(prefixes.begin(), prefixes.end(), [&](std::string_view prefix) {
      return contains(fmt::format("{}{}", prefix, probe));
    });
    return found == prefixes.end() ? std::optional<std::string>() : std::string(*found);
  };
  const auto text = resolve(kTextPrefixes, kTextProbe);
  if (!text) {
    fail(fmt::format("the checkpoint has no {} under any known prefix ('{}')", kTextProbe,
                     fmt::join(kTextPrefixes, "', '")));
  }
  text_prefix_ = *text;
  vision_prefix_ = resolve(kVisionPrefixes, kVisionProbe).value_or("");
  head_name_ = resolve(kHeadNames, "").value_or("");
}

bool WeightStore::contains(std::string_view name) const {
  return tensors_.contains(std::string(name));
}

const StoredTensor& WeightStore::find(std::string_view name) const {
  const auto found = tensors_.find(std::string(name));
  if (found == tensors_.end()) fail(fmt::format("the checkpoint lacks the tensor '{}'", name));
  return found->second;
}

Tensor WeightStore::view(const StoredTensor& stored, std::initializer_list<int64_t> shape) const {
  if (!std::equal(shape.begin(), shape.end(), stored.shape.begin(), stored.shape.end())) {
    fail(fmt::format("tensor '{}' has the shape [{}], expected is [{}]", stored.name,
                     fmt::join(stored.shape, ", "), fmt::join(shape, ", ")));
  }
  if (shape.size() <= 2) return {stored.bytes.data(), stored.dtype, Device::cpu, shape};
  const int64_t rows = *shape.begin();
  return {stored.bytes.data(), stored.dtype, Device::cpu, {rows, stored.num_elements() / rows}};
}

Tensor WeightStore::get(std::string_view name, std::initializer_list<int64_t> shape,
                        std::initializer_list<DType> dtypes) const {
  const StoredTensor& stored = find(name);
  if (std::find(dtypes.begin(), dtypes.end(), stored.dtype) == dtypes.end()) {
    std::vector<std::string_view> names;
    for (const DType dtype : dtypes) names.push_back(name_of(dtype));
    fail(fmt::format("tensor '{}' is stored as {}, expected is {}", name, name_of(stored.dtype),
                     fmt::join(names, ", ")));
  }
  return view(stored, shape);
}

Tensor WeightStore::get_f32(std::string_view name, std::initializer_list<int64_t> shape) {
  const Tensor stored = get(name, shape, {DType::f32, DType::f16, DType::bf16});
  if (stored.dtype() == DType::f32) return stored;
  auto [entry, is_new] = converted_.try_emplace(std::string(name));
  if (is_new) entry->second = to_floats(stored);
  return {entry->second.data(), DType::f32, Device::cpu, stored.shape()};
}

LinearPart WeightStore::linear_part(std::string_view module, int64_t out_features,
                                    int64_t in_features,
                                    std::initializer_list<int64_t> stored_shape) {
  const std::string name = fmt::format("{}.weight", module);
  const std::initializer_list<int64_t> matrix{out_features, in_features};
  LinearPart part;
  part.weight = get(name, stored_shape.size() == 0 ? matrix : stored_shape,
                    {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3});
  if (part.weight.dtype() == DType::f8_e4m3) {
    const std::string scales = name + "_scale_inv";
    if (!contains(scales)) {
      fail(fmt::format("tensor '{}' is FP8, but its scales '{}' are missing", name, scales));
    }
    part.scales = get_f32(scales, {blocks(out_features), blocks(in_features)});
    const std::span<const float> values = part.scales.span<float>();
    if (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); })) {
      fail(fmt::format("tensor '{}' holds a scale that is not a number", scales));
    }
  }
  const std::string bias = fmt::format("{}.bias", module);
  if (contains(bias)) part.bias = get_f32(bias, {out_features});
  return part;
}

std::string WeightStore::name_of_view(const Tensor& tensor) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& entry) {
    return entry.second.bytes.data() == tensor.raw();
  });
  return found == tensors_.end() ? "?" : found->first;
}

void WeightStore::prefetch() const {
  for (const MappedFile& file : files_) file.prefetch();
}

void WeightStore::release_pages(const Tensor& tensor) const {
  const std::span<const std::byte> part{tensor.raw(), static_cast<size_t>(tensor.num_bytes())};
  for (const MappedFile& file : files_) {
    const std::span<const std::byte> bytes = file.bytes();
    const bool is_inside = !part.empty() && part.data() >= bytes.data() &&
                           part.data() + part.size() <= bytes.data() + bytes.size();
    if (is_inside) file.release(part);
  }
}

int64_t WeightStore::num_parameters() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : tensors_) {
    if (!name.ends_with("_scale_inv")) count += tensor.num_elements();
  }
  return count;
}

int64_t WeightStore::num_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += static_cast<int64_t>(tensor.bytes.size());
  return bytes;
}

std::string WeightStore::weight_format() const {
  std::map<DType, size_t> bytes;
  for (const auto& [name, tensor] : tensors_) {
    const bool is_projection =
        name.starts_with(text_prefix_ + "layers.") && tensor.shape.size() == 2;
    if (is_projection && !name.ends_with("_scale_inv")) bytes[tensor.dtype] += tensor.bytes.size();
  }
  const auto largest = std::max_element(
      bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (largest == bytes.end()) return "none";
  return largest->first == DType::f8_e4m3 ? "fp8" : std::string(name_of(largest->first));
}

}  // namespace glimpse
