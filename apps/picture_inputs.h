// The pictures that a command line names.
#pragma once

#include <string>
#include <vector>

#include "glimpse/request.h"

namespace glimpse {

/// A file, or a picture that came through standard input.
struct PictureInput {
  std::string name;
  Picture picture;
};

/// Files as they are, the pictures of a directory by name, and - for standard input. Throws Error.
[[nodiscard]] std::vector<PictureInput> find_pictures(const std::vector<std::string>& names);

}  // namespace glimpse
