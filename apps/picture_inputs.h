// The pictures that a command line names.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "glimpse/error.h"
#include "glimpse/request.h"

namespace glimpse {

/// A file, or a picture that came through standard input.
struct PictureInput {
  std::string name;
  Picture picture;
  std::optional<Error> fault;  ///< why there is no picture; other inputs may have one
};

/// Files as they are, the pictures of a directory by name, and - for standard input. Pipes are read
/// here. Never empty for a name: what cannot be read is an input with its fault.
[[nodiscard]] std::vector<PictureInput> find_pictures(const std::vector<std::string>& names);

}  // namespace glimpse
