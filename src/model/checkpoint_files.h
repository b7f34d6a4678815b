// The JSON files of a synthesised checkpoint.
#pragma once

#include "base/json.h"
#include "model/synthesize.h"

namespace glimpse {

[[nodiscard]] Json config_json(const CheckpointShape& shape,
                               RandomCheckpointOptions::Format format);
[[nodiscard]] Json generation_config_json(const ModelConfig& config);
[[nodiscard]] Json preprocessor_config_json(const VisionConfig& vision);

}  // namespace glimpse
