// What a client did wrong or met, with its HTTP status: every error answer of the server is made
// from one of these, in OpenAI's form.
#pragma once

#include <string>
#include <utility>

#include "base/json.h"
#include "glimpse/error.h"

namespace glimpse {

/// An Error that knows the HTTP status and the request's field it is about.
class RequestError : public Error {
 public:
  RequestError(int status, const std::string& message, std::string param = {},
               std::string hint = {}, std::string api_code = {})
      : Error(ErrorCode::invalid_argument, message, std::move(hint)),
        status_(status),
        param_(std::move(param)),
        api_code_(std::move(api_code)) {}

  [[nodiscard]] int status() const { return status_; }
  /// "messages[0].content"; empty when the error is about no field.
  [[nodiscard]] const std::string& param() const { return param_; }
  /// The machine-readable "code" of the error body; empty: chosen by the status.
  [[nodiscard]] const std::string& api_code() const { return api_code_; }

 private:
  int status_;
  std::string param_;
  std::string api_code_;
};

/// The HTTP status of any error of the library.
[[nodiscard]] int http_status(const Error& error);

/// {"error": {"message", "type", "param", "code"}}.
[[nodiscard]] Json error_body(const Error& error);

}  // namespace glimpse
