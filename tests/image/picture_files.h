// Small picture files for tests: read from the goldens, changed byte by byte, or made here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

#include "image/decode.h"
#include "paths.h"

namespace glimpse::testing {

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Where a picture of the goldens is: in the project, uncompressed ones packed, the three largest
/// beside it.
inline std::filesystem::path golden_picture_path(std::string_view name) {
  for (const auto& folder :
       {golden_dir() / "preprocess" / "files", unpacked_golden_dir() / "uncompressed-pictures"}) {
    if (std::filesystem::exists(folder / name)) return folder / name;
  }
  return shared_dir() / "golden" / "preprocess" / "files" / name;
}

inline std::string golden_picture(std::string_view name) {
  return read_text(golden_picture_path(name));
}

inline RgbImage decode_text(std::string_view file, const DecodeLimits& limits = {}) {
  return decode_picture(std::as_bytes(std::span(file)), "test", limits);
}

inline void put_little(std::string& file, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) file += static_cast<char>(value >> (8 * i));
}

inline void put_big(std::string& file, uint64_t value, int bytes) {
  for (int i = bytes - 1; i >= 0; --i) file += static_cast<char>(value >> (8 * i));
}

struct BmpRecipe {
  int width = 0;
  int height = 0;  // negative: top-down
  int bits = 0;
  uint32_t compression = 0;
  std::string masks_or_palette;
  std::string pixels;
};

inline std::string make_bmp(const BmpRecipe& recipe) {
  std::string file = "BM";
  const bool masks = recipe.compression == 3;
  put_little(file, 0, 8);
  put_little(file, 54 + recipe.masks_or_palette.size(), 4);
  put_little(file, 40, 4);
  put_little(file, static_cast<uint32_t>(recipe.width), 4);
  put_little(file, static_cast<uint32_t>(recipe.height), 4);
  put_little(file, 1, 2);
  put_little(file, recipe.bits, 2);
  put_little(file, recipe.compression, 4);
  file.append(12, '\0');
  put_little(file, masks ? 0 : recipe.masks_or_palette.size() / 4, 4);
  put_little(file, 0, 4);
  return file + recipe.masks_or_palette + recipe.pixels;
}

/// A GIF of one code stream: `frame` is {left, top, width, height}. Only for sizes whose pixels are
/// all index 1: codes of 3 bits, the table cleared before each pixel.
inline std::string make_gif(int width, int height, std::initializer_list<int> frame,
                            int transparent_index) {
  std::string file = "GIF89a";
  put_little(file, width, 2);
  put_little(file, height, 2);
  put_little(file, 0x80, 1);  // a palette of two
  put_little(file, 0, 2);
  file += std::string("\x0A\x14\x1E\xC8\x64\x32", 6);
  if (transparent_index >= 0) {
    file += std::string("\x21\xF9\x04\x01\0\0", 6);
    put_little(file, transparent_index, 1);
    put_little(file, 0, 1);
  }
  file += ',';
  int pixels = 1;
  int position = 0;
  for (const int value : frame) {
    put_little(file, value, 2);
    if (position++ >= 2) pixels *= value;
  }
  put_little(file, 0, 1);
  put_little(file, 2, 1);  // clear = 4, end = 5
  std::string codes;
  uint32_t bits = 0;
  int held = 0;
  const auto put = [&](uint32_t code) {
    bits |= code << held;
    for (held += 3; held >= 8; held -= 8, bits >>= 8) codes += static_cast<char>(bits);
  };
  for (int i = 0; i < pixels; ++i) {
    put(4);
    put(1);
  }
  put(5);
  codes += static_cast<char>(bits);
  put_little(file, codes.size(), 1);
  return file + codes + std::string("\0;", 2);
}

}  // namespace glimpse::testing
