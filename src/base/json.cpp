#include "base/json.h"

#include <string>

#include "base/check.h"
#include "base/mapped_file.h"

namespace glimpse {

Json parse_json(std::string_view text, std::string_view what, ErrorCode code) {
  constexpr int kMaxDepth = 512;
  bool too_deep = false;
  const auto refuse_depth = [&](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > kMaxDepth;
    return !too_deep;
  };
  try {
    Json value = Json::parse(text, refuse_depth);
    if (too_deep) {
      throw Error(code, fmt::format("{} nests deeper than {} levels", what, kMaxDepth));
    }
    return value;
  } catch (const Json::parse_error& error) {
    throw Error(code, fmt::format("{} is not valid JSON at byte {}", what, error.byte),
                code == ErrorCode::bad_model ? "the file is damaged: download it again" : "");
  } catch (const Json::out_of_range&) {
    throw Error(code, fmt::format("{} has a number beyond the range of a double", what));
  }
}

Json read_json_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

}  // namespace glimpse
