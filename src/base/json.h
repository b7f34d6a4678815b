// JSON values with their key order kept. The only file that includes nlohmann/json; the 11 MB
// tokenizer is the one document read with simdjson instead (text/tokenizer.cpp).
#pragma once

#include <filesystem>
#include <string_view>

#include <nlohmann/json.hpp>

#include "glimpse/error.h"

namespace glimpse {

using Json = nlohmann::ordered_json;

/// Parses `text`; `what` names the document in the error ("config.json", "request body").
/// Throws Error(code) with the byte offset; nesting beyond 512 levels is refused.
[[nodiscard]] Json parse_json(std::string_view text, std::string_view what,
                              ErrorCode code = ErrorCode::bad_model);

/// Reads and parses a file. Throws Error(not_found) or as parse_json does.
[[nodiscard]] Json read_json_file(const std::filesystem::path& path);

}  // namespace glimpse
