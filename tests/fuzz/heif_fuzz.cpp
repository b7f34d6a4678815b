#include "decode_fuzz.h"
#include "known_leaks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return glimpse::fuzz::decode(glimpse::decode_heif, data, size);
}
