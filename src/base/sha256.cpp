#include "base/sha256.h"

#include <openssl/evp.h>

#include "base/check.h"

namespace glimpse {

Sha256 sha256(std::span<const std::byte> bytes) {
  Sha256 digest{};
  unsigned int length = 0;
  const int ok =
      EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr);
  check(ok == 1 && length == digest.size(), "SHA-256 failed");
  return digest;
}

std::string to_hex(const Sha256& digest) {
  std::string text;
  for (const uint8_t byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

}  // namespace glimpse
