// What decodes must encode to the same text again: strict base64 has one spelling a value.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/data_url.h"
#include "glimpse/error.h"

namespace {

std::string encode(const std::vector<std::byte>& bytes) {
  constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j) {
      bits = bits << 8 | (i + j < bytes.size() ? static_cast<uint32_t>(bytes[i + j]) : 0);
    }
    for (size_t j = 0; j < 4; ++j) {
      text += i + j <= bytes.size() ? kAlphabet[bits >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace glimpse;
  const std::string_view url(reinterpret_cast<const char*>(data), size);
  try {
    const auto bytes = decode_data_url(url, {.max_bytes = 1 << 16});
    if (encode(bytes) != url.substr(url.find(',') + 1)) std::abort();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::invalid_argument) std::abort();
  }
  return 0;
}
