// Where a checkpoint says how its pictures are prepared. Two files and two layouts of the size are
// in use; a key that is missing has transformers' default, one with a wrong value is refused.
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "glimpse/error.h"
#include "image/image_processor.h"

namespace glimpse {
namespace {

constexpr int64_t kMaxArea = int64_t{1} << 31;

[[noreturn]] void throw_bad_value(std::string_view key, const Json& value,
                                  std::string_view expected) {
  throw Error(ErrorCode::bad_model,
              fmt::format("the image processor's {} is {}, expected {}", key,
                          value.dump(-1, ' ', true, Json::error_handler_t::replace), expected),
              "compare preprocessor_config.json with the original checkpoint's");
}

const Json* find(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

void read_integer(const Json& object, std::string_view key, int64_t largest, int64_t& target) {
  const Json* value = find(object, key);
  if (value == nullptr) return;
  if (!value->is_number_integer() || *value < 1 || *value > largest) {
    throw_bad_value(key, *value, fmt::format("a whole number from 1 to {}", largest));
  }
  target = value->get<int64_t>();
}

void read_integer(const Json& object, std::string_view key, int largest, int& target) {
  int64_t value = target;
  read_integer(object, key, int64_t{largest}, value);
  target = static_cast<int>(value);
}

double read_number(const Json& value, std::string_view key) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(std::abs(number) <= std::numeric_limits<float>::max())) {
    throw_bad_value(key, value, "a number");
  }
  return number;
}

void read_channels(const Json& object, std::string_view key, float (&target)[3]) {
  const Json* value = find(object, key);
  if (value == nullptr) return;
  if (!value->is_array() || value->size() != 3) throw_bad_value(key, *value, "three numbers");
  for (size_t i = 0; i < 3; ++i) {
    target[i] = static_cast<float>(read_number((*value)[i], key));
  }
}

void expect_true(const Json& object, std::string_view key) {
  const Json* value = find(object, key);
  if (value == nullptr || *value == true) return;
  throw Error(ErrorCode::unsupported,
              fmt::format("the image processor's {} is {}, only true is supported", key,
                          value->dump(-1, ' ', true, Json::error_handler_t::replace)),
              "use a checkpoint with the usual image processor");
}

void read_size(const Json& object, ImageProcessorConfig& config) {
  if (const Json* size = find(object, "size")) {
    if (!size->is_object()) throw_bad_value("size", *size, "an object");
    read_integer(*size, "shortest_edge", kMaxArea, config.min_pixels);
    read_integer(*size, "longest_edge", kMaxArea, config.max_pixels);
  }
  // The older names win where both are given: transformers writes them over the size.
  read_integer(object, "min_pixels", kMaxArea, config.min_pixels);
  read_integer(object, "max_pixels", kMaxArea, config.max_pixels);
  if (config.min_pixels > config.max_pixels) {
    throw Error(ErrorCode::bad_model,
                fmt::format("the image processor's least area {} is above its largest {}",
                            config.min_pixels, config.max_pixels),
                "compare preprocessor_config.json with the original checkpoint's");
  }
}

}  // namespace

ImageProcessorConfig ImageProcessorConfig::from_json(const Json& object) {
  if (!object.is_object()) throw_bad_value("config", object, "an object");
  ImageProcessorConfig config;
  read_integer(object, "patch_size", 256, config.patch_size);
  read_integer(object, "temporal_patch_size", 16, config.temporal_patch_size);
  read_integer(object, "merge_size", 16, config.merge_size);
  read_size(object, config);
  read_channels(object, "image_mean", config.image_mean);
  read_channels(object, "image_std", config.image_std);
  for (const float deviation : config.image_std) {
    if (deviation == 0.0F) throw_bad_value("image_std", object.at("image_std"), "no zero");
  }
  if (const Json* factor = find(object, "rescale_factor")) {
    config.rescale_factor = read_number(*factor, "rescale_factor");
    if (config.rescale_factor < 1e-30) throw_bad_value("rescale_factor", *factor, "above 0");
  }
  if (const Json* resample = find(object, "resample"); resample != nullptr && *resample != 3) {
    throw Error(ErrorCode::unsupported,
                fmt::format("the image processor's resample is {}, only 3 (bicubic) is supported",
                            resample->dump(-1, ' ', true, Json::error_handler_t::replace)),
                "use a checkpoint with the usual image processor");
  }
  for (const char* key : {"do_resize", "do_rescale", "do_normalize"}) expect_true(object, key);
  return config;
}

ImageProcessorConfig ImageProcessorConfig::from_directory(const std::filesystem::path& directory) {
  const std::filesystem::path preprocessor = directory / "preprocessor_config.json";
  const std::filesystem::path processor = directory / "processor_config.json";
  // Like transformers: the newer file's section first, then the older file.
  if (std::filesystem::exists(processor)) {
    const Json document = read_json_file(processor);
    if (!document.is_object()) throw_bad_value("config", document, "an object");
    const Json* section = find(document, "image_processor");
    if (section != nullptr) return from_json(*section);
  }
  if (std::filesystem::exists(preprocessor)) return from_json(read_json_file(preprocessor));
  return {};
}

}  // namespace glimpse
