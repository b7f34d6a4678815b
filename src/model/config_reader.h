// Reads numbers out of an untrusted JSON object: every one has a name in the error and a range.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "base/json.h"

namespace glimpse {

/// A view of one JSON object of a file. null counts as absent.
class ConfigReader {
 public:
  /// `where` is the file and the path of the object: "config.json: text_config".
  ConfigReader(const Json& object, std::string where) : object_(&object), where_(std::move(where)) {
    if (!object.is_object()) fail(fmt::format("{} is not an object", where_));
  }

  [[nodiscard]] const Json* find(std::string_view key) const {
    const auto found = object_->find(key);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
  }
  [[nodiscard]] const Json& at(std::string_view key) const {
    const Json* value = find(key);
    if (value == nullptr) fail(fmt::format("{} lacks the key '{}'", where_, key));
    return *value;
  }
  [[nodiscard]] std::optional<ConfigReader> find_object(std::string_view key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    return ConfigReader(*value, path_of(key));
  }

  [[nodiscard]] int64_t integer(std::string_view key, int64_t least, int64_t most) const {
    return as_integer(at(key), path_of(key), least, most);
  }
  [[nodiscard]] int64_t integer_or(std::string_view key, int64_t least, int64_t most,
                                   int64_t otherwise) const {
    return find(key) == nullptr ? otherwise : integer(key, least, most);
  }
  [[nodiscard]] double number(std::string_view key, double least, double most) const {
    return as_number(at(key), path_of(key), least, most);
  }
  [[nodiscard]] double number_or(std::string_view key, double least, double most,
                                 double otherwise) const {
    return find(key) == nullptr ? otherwise : number(key, least, most);
  }
  [[nodiscard]] bool boolean_or(std::string_view key, bool otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail(fmt::format("{} is not true or false", path_of(key)));
    return value->get<bool>();
  }
  [[nodiscard]] std::string string(std::string_view key) const {
    const Json& value = at(key);
    if (!value.is_string()) fail(fmt::format("{} is not a string", path_of(key)));
    return value.get<std::string>();
  }
  [[nodiscard]] std::string string_or(std::string_view key, std::string_view otherwise) const {
    return find(key) == nullptr ? std::string(otherwise) : string(key);
  }
  /// A number, or a list of at most `most_items`; absent: none.
  [[nodiscard]] std::vector<int64_t> integers(std::string_view key, int64_t least, int64_t most,
                                              size_t most_items) const {
    const Json* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_array()) return {as_integer(*value, path_of(key), least, most)};
    if (value->size() > most_items) {
      fail(fmt::format("{} has {} entries, at most {} are possible", path_of(key), value->size(),
                       most_items));
    }
    std::vector<int64_t> result;
    for (const Json& item : *value) result.push_back(as_integer(item, path_of(key), least, most));
    return result;
  }

  [[nodiscard]] std::string path_of(std::string_view key) const {
    return fmt::format("{}{}{}", where_, where_.ends_with(".json") ? ": " : ".", key);
  }
  [[noreturn]] static void fail(const std::string& message) {
    throw Error(ErrorCode::bad_model, message,
                "the file is damaged or not a configuration that Glimpse knows");
  }

 private:
  static int64_t as_integer(const Json& value, const std::string& path, int64_t least,
                            int64_t most) {
    if (!value.is_number_integer()) fail(fmt::format("{} is not a whole number", path));
    const bool is_huge = value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX;
    const int64_t number = is_huge ? INT64_MAX : value.get<int64_t>();
    if (is_huge || number < least || number > most) {
      fail(fmt::format("{} is {}, it must be {} to {}", path, value.dump(), least, most));
    }
    return number;
  }
  static double as_number(const Json& value, const std::string& path, double least, double most) {
    if (!value.is_number()) fail(fmt::format("{} is not a number", path));
    const auto number = value.get<double>();
    if (!(number >= least && number <= most)) {
      fail(fmt::format("{} is {}, it must be {} to {}", path, value.dump(), least, most));
    }
    return number;
  }

  const Json* object_;
  std::string where_;
};

}  // namespace glimpse
