// Where a model is: a checkpoint directory, or a repo id in the local Hugging Face cache.
#pragma once

#include <filesystem>
#include <string_view>

namespace glimpse {

/// The checkpoint directory behind `--model`: an existing directory as it is, or `owner/name`
/// looked up in HF_HUB_CACHE, HF_HOME/hub, or ~/.cache/huggingface/hub (the snapshot that
/// refs/main names, else the newest). Nothing is downloaded. Throws Error(not_found) listing what
/// was looked at, or naming the file that a directory lacks to be a checkpoint.
[[nodiscard]] std::filesystem::path resolve_model_directory(std::string_view model);

}  // namespace glimpse
