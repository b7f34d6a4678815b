#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace glimpse {

/// What kind of thing went wrong. The command line maps each kind to an exit code and the server
/// to an HTTP status, so a caller never has to read the message to decide what to do.
enum class ErrorCode {
  invalid_argument,  ///< a flag, option or request field has a value that cannot be used
  not_found,         ///< a file, directory or model does not exist
  bad_picture,       ///< the bytes are not a picture that can be decoded, or its shape is refused
  bad_model,         ///< a checkpoint file is malformed, incomplete or contradicts its config
  unsupported,       ///< well-formed, but something Glimpse does not do
  context_exceeded,  ///< the prompt (or prompt and answer) does not fit the context
  out_of_memory,     ///< a plan or allocation exceeds the memory or the cap
  device,            ///< the GPU or its driver failed
  overloaded,        ///< the queue is full: try again later
  cancelled,         ///< the caller gave up
  internal,          ///< a broken invariant: a defect of Glimpse itself
};

/// The one exception of the library: a sentence with the value and the limit, and a hint that says
/// what to do. The library never prints and never exits.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, std::string hint = {})
      : std::runtime_error(message), code_(code), hint_(std::move(hint)) {}

  [[nodiscard]] ErrorCode code() const { return code_; }
  /// What the user can do about it; may be empty.
  [[nodiscard]] const std::string& hint() const { return hint_; }

 private:
  ErrorCode code_;
  std::string hint_;
};

}  // namespace glimpse
