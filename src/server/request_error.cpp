#include "server/request_error.h"

namespace glimpse {
namespace {

std::string api_code(const Error& error) {
  switch (error.code()) {
    case ErrorCode::invalid_argument:
      return "invalid_value";
    case ErrorCode::not_found:
      return "not_found";
    case ErrorCode::bad_picture:
      return "bad_picture";
    case ErrorCode::bad_model:
      return "bad_model";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::context_exceeded:
      return "context_length_exceeded";
    case ErrorCode::out_of_memory:
      return "out_of_memory";
    case ErrorCode::device:
      return "device_failed";
    case ErrorCode::overloaded:
      return "overloaded";
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::internal:
      return "internal_error";
  }
  return "internal_error";
}

std::string type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

int http_status(const Error& error) {
  if (const auto* request = dynamic_cast<const RequestError*>(&error)) return request->status();
  switch (error.code()) {
    case ErrorCode::invalid_argument:
    case ErrorCode::not_found:  // a picture of the request; unknown routes and models never get
                                // here
    case ErrorCode::unsupported:
    case ErrorCode::context_exceeded:
      return 400;
    case ErrorCode::bad_picture:
      return 422;
    case ErrorCode::overloaded:
      return 429;
    case ErrorCode::bad_model:
    case ErrorCode::out_of_memory:
    case ErrorCode::device:
    case ErrorCode::cancelled:
      return 503;
    case ErrorCode::internal:
      return 500;
  }
  return 500;
}

Json error_body(const Error& error) {
  const auto* request = dynamic_cast<const RequestError*>(&error);
  std::string message = error.what();
  if (!error.hint().empty()) message += "; " + error.hint();
  Json value = {{"message", message},
                {"type", type_of(http_status(error))},
                {"param", nullptr},
                {"code", api_code(error)}};
  if (request != nullptr && !request->param().empty()) value["param"] = request->param();
  if (request != nullptr && !request->api_code().empty()) value["code"] = request->api_code();
  return {{"error", value}};
}

}  // namespace glimpse
