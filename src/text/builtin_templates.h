// The chat templates of Qwen3-VL, for checkpoints that come without one: written from the prompt
// format's description and compared byte by byte with what the originals render.
#pragma once

#include <string>

namespace glimpse {

[[nodiscard]] std::string instruct_template_source();
[[nodiscard]] std::string thinking_template_source();

}  // namespace glimpse
