// config.json and generation_config.json.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "glimpse/error.h"
#include "model/config.h"
#include "model/rotary.h"

namespace {

template <typename Read>
void attempt(const Read& read) {
  try {
    read();
  } catch (const glimpse::Error& error) {
    if (error.code() == glimpse::ErrorCode::internal) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  glimpse::Json json;
  try {
    json = glimpse::parse_json(text, "fuzz");
  } catch (const glimpse::Error&) {
    return 0;
  }
  attempt([&] {
    const glimpse::ModelConfig config = glimpse::ModelConfig::from_json(json);
    // An accepted config is one that positions can be computed for.
    static_cast<void>(glimpse::rotary_axes(config.text));
    static_cast<void>(glimpse::inverse_frequencies(config.text.rope_theta, config.text.head_dim));
  });
  attempt([&] { static_cast<void>(glimpse::GenerationConfig::from_json(json)); });
  return 0;
}
