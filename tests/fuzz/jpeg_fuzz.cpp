#include "decode_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return glimpse::fuzz::decode(glimpse::decode_jpeg, data, size);
}
