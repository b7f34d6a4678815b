#include "picture_inputs.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>

#include <fmt/format.h>

#include "base/input_limits.h"

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

// All bytes of a pipe, of which nobody knows the length before.
std::vector<std::byte> read_stream(std::FILE* stream, const std::string& name) {
  std::vector<std::byte> bytes;
  std::byte block[1 << 16];
  size_t count = 0;
  while ((count = std::fread(block, 1, sizeof(block), stream)) > 0) {
    bytes.insert(bytes.end(), block, block + count);
    if (bytes.size() > static_cast<size_t>(kMaxPictureFileBytes)) {
      throw Error(ErrorCode::bad_picture,
                  fmt::format("{} gives more than {} MiB, the most that a picture file may have",
                              name, kMaxPictureFileBytes >> 20),
                  "give one picture");
    }
  }
  if (std::ferror(stream) != 0) {
    throw Error(ErrorCode::not_found,
                fmt::format("{} cannot be read: {}", name, std::strerror(errno)),
                "pipe a picture in: glimpse caption - < picture.png");
  }
  if (bytes.empty()) {
    throw Error(ErrorCode::bad_picture, fmt::format("{} is empty", name),
                "pipe a picture in: glimpse caption - < picture.png");
  }
  return bytes;
}

Picture read_pipe(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"),
                                                             &std::fclose);
  if (file == nullptr) {
    throw Error(ErrorCode::not_found,
                fmt::format("{} cannot be opened: {}", path, std::strerror(errno)),
                "check who may read it");
  }
  return {.bytes = read_stream(file.get(), path), .name = path};
}

// By name, so that equal directories give equal output.
std::vector<std::string> pictures_in(const std::string& directory) {
  std::vector<std::string> found;
  std::error_code failed;
  std::filesystem::directory_iterator entries(directory, failed);
  for (; !failed && entries != std::filesystem::directory_iterator(); entries.increment(failed)) {
    std::error_code ignored;
    if (entries->is_regular_file(ignored) && looks_like_picture(entries->path())) {
      found.push_back(entries->path().string());
    }
  }
  if (failed) {
    throw Error(ErrorCode::not_found,
                fmt::format("the directory {} cannot be read: {}", directory, failed.message()),
                "check who may read it");
  }
  if (found.empty()) {
    throw Error(ErrorCode::not_found, fmt::format("no pictures in the directory {}", directory),
                "name a directory with .jpg, .png, .webp, .gif, .bmp, .tiff, .heic or .avif files");
  }
  std::sort(found.begin(), found.end());
  return found;
}

void add_pictures(const std::string& name, std::vector<PictureInput>& inputs) {
  if (name.empty()) {
    throw Error(ErrorCode::not_found, "the name of a picture is empty",
                "name a file, a directory or - for standard input");
  }
  if (name == "-") {
    inputs.push_back(
        {name, {.bytes = read_stream(stdin, "standard input"), .name = "standard input"}, {}});
    return;
  }
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(name, ignored);
  if (std::filesystem::is_directory(status)) {
    for (std::string& path : pictures_in(name)) {
      Picture picture{.path = path};
      inputs.push_back({std::move(path), std::move(picture), {}});
    }
  } else if (std::filesystem::is_fifo(status) || std::filesystem::is_character_file(status)) {
    inputs.push_back({name, read_pipe(name), {}});
  } else {
    inputs.push_back({name, {.path = name}, {}});
  }
}

}  // namespace

std::vector<PictureInput> find_pictures(const std::vector<std::string>& names) {
  std::vector<PictureInput> inputs;
  for (const std::string& name : names) {
    try {
      add_pictures(name, inputs);
    } catch (const Error& error) {
      inputs.push_back({name, {}, error});
    }
  }
  return inputs;
}

}  // namespace glimpse
