#include "model/synthesize.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>

#include "base/thread_pool.h"
#include "glimpse/synthesize.h"
#include "model/checkpoint_files.h"
#include "model/random_tensor.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;
using Format = RandomCheckpointOptions::Format;

[[noreturn]] void fail_to_write(const fs::path& path, int error) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("cannot write {}: {}", path.string(), std::strerror(error)),
              "choose a directory that can be written and has room");
}

// ---- which tensors there are ------------------------------------------------------------------

// Uniform values of this amplitude have standard deviation 1.
const float kUnit = std::sqrt(3.0F);

class TensorList {
 public:
  TensorList(const CheckpointShape& shape, Format format) : shape_(shape), format_(format) {
    const TextConfig& text = shape.config.text;
    constexpr float kEmbeddingDeviation = 0.02F;
    add("model.language_model.embed_tokens.weight", {text.vocab_size, text.hidden_size}, 0,
        kUnit * kEmbeddingDeviation);
    for (int64_t i = 0; i < text.num_layers; ++i) add_layer(i);
    add_ones("model.language_model.norm.weight", text.hidden_size);
    if (!shape.is_tied) {
      add("lm_head.weight", {text.vocab_size, text.hidden_size}, 0, kUnit * kEmbeddingDeviation);
    }
    add_vision(shape.config.vision.value());
  }

  [[nodiscard]] std::vector<RandomTensor> take() { return std::move(tensors_); }

 private:
  void add(std::string name, std::vector<int64_t> shape, float centre, float amplitude) {
    tensors_.push_back({std::move(name), DType::bf16, std::move(shape), centre, amplitude});
  }
  void add_ones(const std::string& name, int64_t size) { add(name, {size}, 1, 0.1F); }

  // The gain of a projection is the deviation of its output for inputs of deviation 1.
  static float amplitude(int64_t in, float gain) {
    return gain * kUnit / std::sqrt(static_cast<float>(in));
  }
  static float residual_gain(int64_t layers) {
    return 1.0F / std::sqrt(2.0F * static_cast<float>(layers));
  }

  void add_projection(const std::string& module, int64_t out, int64_t in, float gain) {
    if (format_ == Format::bf16) return add(module + ".weight", {out, in}, 0, amplitude(in, gain));
    constexpr float kLargestE4M3 = 448;
    const float scale = amplitude(in, gain) / kLargestE4M3;
    tensors_.push_back({module + ".weight", DType::f8_e4m3, {out, in}});
    add(module + ".weight_scale_inv",
        {(out + kScaleBlock - 1) / kScaleBlock, (in + kScaleBlock - 1) / kScaleBlock}, scale,
        0.1F * scale);
  }

  void add_layer(int64_t index) {
    const TextConfig& text = shape_.config.text;
    const std::string prefix = fmt::format("model.language_model.layers.{}.", index);
    const int64_t hidden = text.hidden_size;
    const int64_t queries = text.num_heads * text.head_dim;
    const int64_t keys = text.num_kv_heads * text.head_dim;
    const float residual = residual_gain(text.num_layers);
    add_ones(prefix + "input_layernorm.weight", hidden);
    add_projection(prefix + "self_attn.q_proj", queries, hidden, 1);
    add_projection(prefix + "self_attn.k_proj", keys, hidden, 1);
    add_projection(prefix + "self_attn.v_proj", keys, hidden, 1);
    add_projection(prefix + "self_attn.o_proj", hidden, queries, residual);
    add_ones(prefix + "self_attn.q_norm.weight", text.head_dim);
    add_ones(prefix + "self_attn.k_norm.weight", text.head_dim);
    add_ones(prefix + "post_attention_layernorm.weight", hidden);
    add_projection(prefix + "mlp.gate_proj", text.intermediate_size, hidden, 1);
    add_projection(prefix + "mlp.up_proj", text.intermediate_size, hidden, 1);
    add_projection(prefix + "mlp.down_proj", hidden, text.intermediate_size, residual);
  }

  void add_linear(const std::string& module, int64_t out, int64_t in, float gain) {
    add(module + ".weight", {out, in}, 0, amplitude(in, gain));
    add(module + ".bias", {out}, 0, 0.01F);
  }
  void add_layer_norm(const std::string& module, int64_t size) {
    add_ones(module + ".weight", size);
    add(module + ".bias", {size}, 0, 0.01F);
  }
  void add_merger(const VisionConfig& vision, const std::string& prefix, int64_t norm_size) {
    const int64_t merged = vision.merge_area() * vision.hidden_size;
    add_layer_norm(prefix + "norm", norm_size);
    add_linear(prefix + "linear_fc1", merged, merged, 1);
    // Pictures come in beside embeddings of tokens: about as large as those.
    add_linear(prefix + "linear_fc2", vision.out_hidden_size, merged, 0.05F);
  }

  void add_vision(const VisionConfig& vision) {
    const std::string prefix = "model.visual.";
    const int64_t hidden = vision.hidden_size;
    const float residual = residual_gain(vision.depth);
    add(prefix + "patch_embed.proj.weight",
        {hidden, vision.in_channels, vision.temporal_patch_size, vision.patch_size,
         vision.patch_size},
        0, amplitude(vision.patch_features(), 1));
    add(prefix + "patch_embed.proj.bias", {hidden}, 0, 0.01F);
    add(prefix + "pos_embed.weight", {vision.num_position_embeddings, hidden}, 0, 0.5F);
    for (int64_t i = 0; i < vision.depth; ++i) {
      const std::string block = fmt::format("{}blocks.{}.", prefix, i);
      add_layer_norm(block + "norm1", hidden);
      add_linear(block + "attn.qkv", 3 * hidden, hidden, 1);
      add_linear(block + "attn.proj", hidden, hidden, residual);
      add_layer_norm(block + "norm2", hidden);
      add_linear(block + "mlp.linear_fc1", vision.intermediate_size, hidden, 1);
      add_linear(block + "mlp.linear_fc2", hidden, vision.intermediate_size, residual);
    }
    add_merger(vision, prefix + "merger.", hidden);
    for (int64_t i = 0; i < vision.num_deepstack(); ++i) {
      add_merger(vision, fmt::format("{}deepstack_merger_list.{}.", prefix, i),
                 vision.merge_area() * hidden);
    }
  }

  const CheckpointShape& shape_;
  Format format_;
  std::vector<RandomTensor> tensors_;
};

// ---- writing them -----------------------------------------------------------------------------

struct Shard {
  std::string file_name;
  std::span<const RandomTensor> tensors;
};

std::vector<Shard> split_into_shards(std::span<const RandomTensor> tensors, int64_t max_bytes) {
  std::vector<Shard> shards;
  size_t first = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (i > first && bytes + tensors[i].num_bytes() > max_bytes) {
      shards.push_back({"", tensors.subspan(first, i - first)});
      first = i;
      bytes = 0;
    }
    bytes += tensors[i].num_bytes();
  }
  shards.push_back({"", tensors.subspan(first)});
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file_name =
        shards.size() == 1 ? "model.safetensors"
                           : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

class OutputFile {
 public:
  explicit OutputFile(fs::path path)
      : path_(std::move(path)),
        file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (file_ < 0) fail_to_write(path_, errno);
  }
  ~OutputFile() { ::close(file_); }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void resize(int64_t num_bytes) const {
    if (::ftruncate(file_, num_bytes) != 0) fail_to_write(path_, errno);
  }
  /// Thread-safe for distinct ranges.
  void write(int64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t written = ::pwrite(file_, bytes.data(), bytes.size(), offset);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail_to_write(path_, written == 0 ? ENOSPC : errno);
      bytes = bytes.subspan(static_cast<size_t>(written));
      offset += written;
    }
  }

 private:
  fs::path path_;
  int file_;
};

class ShardWriter {
 public:
  ShardWriter(const RandomCheckpointOptions& options, int64_t total_bytes)
      : options_(options), total_bytes_(total_bytes) {}

  void write(const fs::path& path, std::span<const RandomTensor> tensors) {
    const OutputFile file(path);
    const std::string header = header_of(tensors);
    file.write(0, std::as_bytes(std::span(header)));
    auto offset = static_cast<int64_t>(header.size());
    if (options_.is_sparse) {
      for (const RandomTensor& tensor : tensors) offset += tensor.num_bytes();
      file.resize(offset);
      return;
    }
    for (const RandomTensor& tensor : tensors) {
      write_tensor(file, tensor, offset);
      offset += tensor.num_bytes();
    }
  }

 private:
  // Length and JSON, padded with spaces so that the data begins at a multiple of 8.
  static std::string header_of(std::span<const RandomTensor> tensors) {
    Json header = {{"__metadata__", {{"format", "pt"}}}};
    int64_t offset = 0;
    for (const RandomTensor& tensor : tensors) {
      const int64_t end = offset + tensor.num_bytes();
      header[tensor.name] = {{"dtype", tensor.dtype == DType::bf16 ? "BF16" : "F8_E4M3"},
                             {"shape", tensor.shape},
                             {"data_offsets", {offset, end}}};
      offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t length = text.size();
    std::string result(sizeof(length), '\0');
    std::memcpy(result.data(), &length, sizeof(length));
    return result + text;
  }

  void write_tensor(const OutputFile& file, const RandomTensor& tensor, int64_t offset) {
    constexpr int64_t kPiece = 512 << 10;  // stays in the cache until it is written
    const int64_t pieces = (tensor.num_bytes() + kPiece - 1) / kPiece;
    pool_.parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
      std::vector<std::byte> buffer(kPiece);
      for (int64_t piece = first; piece < last; ++piece) {
        const int64_t begin = piece * kPiece;
        const int64_t count = std::min(kPiece, tensor.num_bytes() - begin);
        const std::span<std::byte> bytes = std::span(buffer).first(static_cast<size_t>(count));
        tensor.fill(options_.seed, begin, bytes);
        file.write(offset + begin, bytes);
      }
    });
    done_bytes_ += tensor.num_bytes();
    if (options_.on_progress) options_.on_progress(done_bytes_, total_bytes_);
  }

  const RandomCheckpointOptions& options_;
  int64_t total_bytes_;
  int64_t done_bytes_ = 0;
  ThreadPool pool_;
};

void write_json(const fs::path& path, const Json& json) {
  std::ofstream file(path);
  file << json.dump(2) << "\n";
  file.close();
  if (!file) fail_to_write(path, errno);
}

void refuse_existing_checkpoint(const fs::path& directory) {
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (name == "config.json" || name.ends_with(".safetensors")) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{} already holds {}", directory.string(), name),
                  "choose an empty directory");
    }
  }
}

}  // namespace

void write_random_checkpoint(const CheckpointShape& shape, const fs::path& directory,
                             const RandomCheckpointOptions& options) {
  const std::vector<RandomTensor> tensors = TensorList(shape, options.format).take();
  int64_t total_bytes = 0;
  for (const RandomTensor& tensor : tensors) total_bytes += tensor.num_bytes();
  ShardWriter writer(options, total_bytes);
  const std::vector<Shard> shards = split_into_shards(tensors, options.max_shard_bytes);
  Json weight_map = Json::object();
  for (const Shard& shard : shards) {
    writer.write(directory / shard.file_name, shard.tensors);
    for (const RandomTensor& tensor : shard.tensors) weight_map[tensor.name] = shard.file_name;
  }
  if (shards.size() > 1) {
    write_json(directory / "model.safetensors.index.json",
               {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}});
  }
  write_json(directory / "generation_config.json", generation_config_json(shape.config));
  write_json(directory / "preprocessor_config.json",
             preprocessor_config_json(shape.config.vision.value()));
  // Last: a directory without it is no checkpoint, so an interrupted one is never used.
  write_json(directory / "config.json", config_json(shape, options.format));
}

void synthesize_checkpoint(const SynthesizeOptions& options) {
  const CheckpointShape shape = named_checkpoint_shape(options.shape);
  if (options.format != "bf16" && options.format != "fp8") {
    throw Error(ErrorCode::invalid_argument, fmt::format("there is no format '{}'", options.format),
                "formats are bf16 and fp8");
  }
  std::error_code error;
  fs::create_directories(options.directory, error);
  if (error) fail_to_write(options.directory, error.value());
  refuse_existing_checkpoint(options.directory);
  if (!options.tokenizer.empty()) {
    if (!fs::is_regular_file(options.tokenizer, error)) {
      throw Error(ErrorCode::not_found,
                  fmt::format("there is no tokenizer file {}", options.tokenizer.string()),
                  "give the path of a tokenizer.json");
    }
    fs::copy_file(options.tokenizer, options.directory / "tokenizer.json", error);
    if (error) fail_to_write(options.directory / "tokenizer.json", error.value());
  }
  write_random_checkpoint(shape, options.directory,
                          {.format = options.format == "fp8" ? Format::fp8 : Format::bf16,
                           .seed = options.seed,
                           .is_sparse = options.is_sparse,
                           .on_progress = options.on_progress});
}

}  // namespace glimpse
