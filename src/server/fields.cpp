#include "server/fields.h"

#include <cmath>

#include <fmt/format.h>

namespace glimpse {

std::string shown(const Json& value) {
  constexpr size_t kMost = 40;
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string() && value.get_ref<const std::string&>().size() > kMost) {
    return "a long string";
  }
  return value.dump(-1, ' ', true, Json::error_handler_t::replace);
}

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (object.is_object()) return;
  const std::string name = path_.empty() ? "the request body" : path_;
  throw RequestError(400, fmt::format("{} is {}, it must be an object", name, shown(object)),
                     path_);
}

const Json* Fields::take(const std::string& name) {
  taken_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<std::string> Fields::text(const std::string& name) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) refuse(name, fmt::format("is {}, it must be a string", shown(*value)));
  return value->get<std::string>();
}

std::optional<bool> Fields::boolean(const std::string& name) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    refuse(name, fmt::format("is {}, it must be true or false", shown(*value)));
  }
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(const std::string& name, int64_t least, int64_t most) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX);
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most) {
    refuse(name,
           fmt::format("is {}, it must be an integer from {} to {}", shown(*value), least, most));
  }
  return value->get<int64_t>();
}

std::optional<double> Fields::number(const std::string& name, double least, double most) {
  const Json* value = take(name);
  if (value == nullptr) return std::nullopt;
  // Written so that NaN fails.
  if (!value->is_number() || !(value->get<double>() >= least && value->get<double>() <= most)) {
    refuse(name,
           fmt::format("is {}, it must be a number from {} to {}", shown(*value), least, most));
  }
  return value->get<double>();
}

void Fields::only(const std::string& name, const Json& neutral) {
  const Json* value = take(name);
  if (value == nullptr || *value == neutral) return;
  refuse(name, "has no effect here", "leave it out");
}

void Fields::refuse_rest() const {
  for (const auto& item : object_.items()) {
    if (taken_.count(item.key()) == 0 && !item.value().is_null()) {
      const std::string name = item.key().substr(0, 64);
      refuse(name, "is not an option of this server",
             "leave it out; docs/api.md lists the options");
    }
  }
}

std::string Fields::path_of(const std::string& name) const {
  return path_.empty() ? name : path_ + "." + name;
}

void Fields::refuse(const std::string& name, const std::string& message,
                    const std::string& hint) const {
  const std::string path = path_of(name);
  throw RequestError(400, path + " " + message, path, hint);
}

}  // namespace glimpse
