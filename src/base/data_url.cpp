#include "base/data_url.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include <fmt/format.h>
#include <openssl/evp.h>

#include "glimpse/error.h"

namespace glimpse {
namespace {

constexpr std::string_view kScheme = "data:";
constexpr std::string_view kBase64 = ";base64";
constexpr uint8_t kInvalid = 0xFF;

// What each character stands for. kInvalid has bits that no value has, so one check serves four.
constexpr std::array<uint8_t, 256> make_values() {
  std::array<uint8_t, 256> values{};
  values.fill(kInvalid);
  constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i) {
    values[static_cast<uint8_t>(kAlphabet[i])] = static_cast<uint8_t>(i);
  }
  return values;
}
constexpr std::array<uint8_t, 256> kValues = make_values();

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::invalid_argument, message,
              "send pictures as data:image/png;base64, followed by padded base64");
}

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](char x, char y) { return lower(x) == lower(y); });
}

// The value of one group of 4 characters, of which the last `padding` are '='.
uint32_t decode_group(std::string_view text, size_t at, size_t padding) {
  uint32_t bits = 0;
  for (size_t i = 0; i < 4; ++i) {
    const uint8_t value = i < 4 - padding ? kValues[static_cast<uint8_t>(text[at + i])] : 0;
    if (value == kInvalid) {
      refuse(
          fmt::format("the data URL's character {} of {} is not base64", at + i + 1, text.size()));
    }
    bits = bits << 6 | value;
  }
  return bits;
}

std::vector<std::byte> decode_base64(std::string_view text, size_t max_bytes) {
  if (text.empty()) refuse("the data URL has no bytes");
  if (text.size() % 4 != 0) {
    refuse(
        fmt::format("the data URL has {} characters of base64, not a multiple of 4", text.size()));
  }
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  const size_t size = text.size() / 4 * 3 - padding;
  if (size > max_bytes) {
    refuse(fmt::format("the data URL holds {} bytes, the limit is {}", size, max_bytes));
  }
  std::vector<std::byte> bytes(size);
  for (size_t at = 0, out = 0; at < text.size(); at += 4) {
    const bool last = at + 4 == text.size();
    const uint32_t bits = decode_group(text, at, last ? padding : 0);
    if (last && padding > 0 && (bits & ((1U << (8 * padding)) - 1)) != 0) {
      refuse("the data URL's last base64 group has bits behind its end");
    }
    for (int shift = 16; shift >= 0 && out < size; shift -= 8) {
      bytes[out++] = static_cast<std::byte>(bits >> shift);
    }
  }
  return bytes;
}

}  // namespace

bool is_data_url(std::string_view url) {
  return equals_ignoring_case(url.substr(0, kScheme.size()), kScheme);
}

std::vector<std::byte> decode_data_url(std::string_view url, const DataUrlLimits& limits) {
  if (!is_data_url(url)) refuse("the URL does not begin with data:");
  const size_t comma = url.find(',');
  if (comma == url.npos) refuse("the data URL has no comma before its bytes");
  const std::string_view head = url.substr(kScheme.size(), comma - kScheme.size());
  const size_t tail = head.size() < kBase64.size() ? 0 : head.size() - kBase64.size();
  if (!equals_ignoring_case(head.substr(tail), kBase64)) {
    refuse("the data URL is not marked ;base64");
  }
  return decode_base64(url.substr(comma + 1), limits.max_bytes);
}

std::string encode_data_url(std::span<const std::byte> bytes) {
  std::string url = "data:application/octet-stream;base64,";
  const size_t begin = url.size();
  url.resize(begin + (bytes.size() + 2) / 3 * 4 + 1);  // EVP_EncodeBlock ends with a zero
  const auto* from = reinterpret_cast<const unsigned char*>(bytes.data());
  auto* to = reinterpret_cast<unsigned char*>(url.data() + begin);
  // In pieces of a multiple of three bytes: the length is an int.
  constexpr size_t kPiece = size_t{3} << 24;
  for (size_t done = 0; done < bytes.size(); done += kPiece) {
    to +=
        ::EVP_EncodeBlock(to, from + done, static_cast<int>(std::min(kPiece, bytes.size() - done)));
  }
  url.pop_back();
  return url;
}

}  // namespace glimpse
