#include "server/api_keys.h"

#include <openssl/crypto.h>

namespace glimpse {
namespace {

// Digests have one length, whatever the keys'.
Sha256 digest_of(std::string_view text) {
  return sha256({reinterpret_cast<const std::byte*>(text.data()), text.size()});
}

}  // namespace

bool equal_in_constant_time(const Sha256& a, const Sha256& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) digests_.push_back(digest_of(key));
}

// Every key is compared in full, whatever the first ones said.
bool ApiKeys::accept(std::string_view authorization) const {
  if (digests_.empty()) return true;
  constexpr std::string_view kScheme = "Bearer ";
  if (authorization.substr(0, kScheme.size()) != kScheme) return false;
  const Sha256 given = digest_of(authorization.substr(kScheme.size()));
  int num_equal = 0;
  for (const Sha256& digest : digests_) num_equal += equal_in_constant_time(digest, given) ? 1 : 0;
  return num_equal > 0;
}

}  // namespace glimpse
