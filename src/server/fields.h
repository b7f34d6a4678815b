// Reads one JSON object strictly: each field is taken once with its type, and what is left over at
// the end was not understood.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "base/json.h"
#include "server/request_error.h"

namespace glimpse {

/// The fields of one object. null counts as absent, as in OpenAI's API. A view: `object` outlives
/// it. Every member throws RequestError(400) that names the field.
class Fields {
 public:
  /// `path` stands before field names in errors: "messages[0]"; empty at the top.
  Fields(const Json& object, std::string path);

  /// The field, or nullptr. Marks it as understood.
  [[nodiscard]] const Json* take(const std::string& name);
  [[nodiscard]] std::optional<std::string> text(const std::string& name);
  [[nodiscard]] std::optional<bool> boolean(const std::string& name);
  [[nodiscard]] std::optional<int64_t> integer(const std::string& name, int64_t least,
                                               int64_t most);
  [[nodiscard]] std::optional<double> number(const std::string& name, double least, double most);
  /// Accepts the field only with the value that changes nothing.
  void only(const std::string& name, const Json& neutral);
  /// Refuses every field that was not taken.
  void refuse_rest() const;

  [[nodiscard]] std::string path_of(const std::string& name) const;
  [[noreturn]] void refuse(const std::string& name, const std::string& message,
                           const std::string& hint = {}) const;

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string> taken_;
};

/// At most 40 characters of a value for an error message.
[[nodiscard]] std::string shown(const Json& value);

}  // namespace glimpse
