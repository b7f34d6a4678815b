#include "picture_inputs.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iterator>

#include <fmt/format.h>

namespace glimpse {
namespace {

bool looks_like_picture(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::string_view kExtensions[] = {".jpg", ".jpeg", ".png",  ".webp", ".gif", ".bmp",
                                              ".tif", ".tiff", ".heic", ".heif", ".avif"};
  return std::find(std::begin(kExtensions), std::end(kExtensions), extension) !=
         std::end(kExtensions);
}

std::vector<std::byte> read_standard_input() {
  std::vector<std::byte> bytes;
  std::byte block[1 << 16];
  size_t count = 0;
  while ((count = std::fread(block, 1, sizeof(block), stdin)) > 0) {
    bytes.insert(bytes.end(), block, block + count);
  }
  if (bytes.empty()) {
    throw Error(ErrorCode::bad_picture, "standard input is empty",
                "pipe a picture in: glimpse caption - < picture.png");
  }
  return bytes;
}

}  // namespace

std::vector<PictureInput> find_pictures(const std::vector<std::string>& names) {
  std::vector<PictureInput> inputs;
  for (const std::string& file : names) {
    if (file == "-") {
      inputs.push_back({"-", {.bytes = read_standard_input(), .name = "standard input"}});
      continue;
    }
    std::error_code ignored;
    if (!std::filesystem::is_directory(file, ignored)) {
      inputs.push_back({file, {.path = file}});
      continue;
    }
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(file)) {
      if (entry.is_regular_file() && looks_like_picture(entry.path())) {
        found.push_back(entry.path().string());
      }
    }
    if (found.empty()) {
      throw Error(
          ErrorCode::not_found, fmt::format("no pictures in the directory {}", file),
          "name a directory with .jpg, .png, .webp, .gif, .bmp, .tiff, .heic or .avif files");
    }
    std::sort(found.begin(), found.end());
    for (std::string& name : found) {
      Picture picture{.path = name};
      inputs.push_back({std::move(name), std::move(picture)});
    }
  }
  return inputs;
}

}  // namespace glimpse
