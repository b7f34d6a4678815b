#include "model/model_directory.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/ranges.h>

#include "base/check.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;

// Places where huggingface_hub keeps models, the most specific setting first.
std::vector<fs::path> cache_directories() {
  std::vector<fs::path> result;
  const auto add = [&](const char* variable, const char* below) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value != '\0') result.push_back(fs::path(value) / below);
  };
  add("HF_HUB_CACHE", "");
  add("HUGGINGFACE_HUB_CACHE", "");
  add("HF_HOME", "hub");
  add("XDG_CACHE_HOME", "huggingface/hub");
  add("HOME", ".cache/huggingface/hub");
  return result;
}

bool is_name_part(std::string_view text) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !text.empty() && text.front() != '.' && std::all_of(text.begin(), text.end(), allowed);
}

bool is_repo_id(std::string_view model) {
  const size_t slash = model.find('/');
  return slash != std::string_view::npos && is_name_part(model.substr(0, slash)) &&
         is_name_part(model.substr(slash + 1));
}

fs::path newest_snapshot(const fs::path& snapshots) {
  fs::path newest;
  fs::file_time_type newest_time{};
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(snapshots, error)) {
    if (!fs::exists(entry.path() / "config.json", error)) continue;
    const fs::file_time_type time = entry.last_write_time(error);
    if (newest.empty() || time > newest_time) {
      newest = entry.path();
      newest_time = time;
    }
  }
  return newest;
}

fs::path find_snapshot(const fs::path& repository) {
  std::ifstream reference(repository / "refs" / "main");
  std::string revision;
  reference >> revision;
  if (is_name_part(revision)) {
    const fs::path named = repository / "snapshots" / revision;
    std::error_code error;
    if (fs::exists(named / "config.json", error)) return named;
  }
  return newest_snapshot(repository / "snapshots");
}

void require_checkpoint(const fs::path& directory) {
  std::error_code error;
  const auto has = [&](const char* name) { return fs::exists(directory / name, error); };
  std::string missing;
  if (!has("config.json")) {
    missing = "config.json";
  } else if (!has("model.safetensors") && !has("model.safetensors.index.json")) {
    missing = "model.safetensors or model.safetensors.index.json";
  }
  if (missing.empty()) return;
  throw Error(ErrorCode::not_found,
              fmt::format("{} holds no checkpoint: {} is missing", directory.string(), missing),
              "--model takes a Hugging Face checkpoint directory with config.json and safetensors "
              "files");
}

}  // namespace

fs::path resolve_model_directory(std::string_view model) {
  const fs::path as_path(model);
  std::error_code error;
  if (fs::is_directory(as_path, error)) {
    require_checkpoint(as_path);
    return as_path;
  }
  std::vector<std::string> looked_at{as_path.string()};
  if (is_repo_id(model)) {
    const size_t slash = model.find('/');
    const std::string folder =
        fmt::format("models--{}--{}", model.substr(0, slash), model.substr(slash + 1));
    for (const fs::path& cache : cache_directories()) {
      const fs::path snapshot = find_snapshot(cache / folder);
      if (!snapshot.empty()) {
        require_checkpoint(snapshot);
        return snapshot;
      }
      looked_at.push_back((cache / folder).string());
    }
  }
  throw Error(
      ErrorCode::not_found,
      fmt::format("there is no model '{}'; looked at: {}", model, fmt::join(looked_at, ", ")),
      "give a checkpoint directory, or download the model with 'huggingface-cli download'");
}

}  // namespace glimpse
