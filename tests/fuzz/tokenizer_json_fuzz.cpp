// Any bytes as tokenizer.json; what loads must then encode and decode any bytes. The input's second
// half, after the first 0xFF byte (which no JSON holds), is the text to encode.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "glimpse/error.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace glimpse;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view json = input.substr(0, input.find('\xFF'));
  const std::string_view text = json.size() < size ? input.substr(json.size() + 1) : "a \xE9 <|x|>";
  try {
    const Tokenizer tokenizer = Tokenizer::from_json(json);
    const auto ids = tokenizer.encode(text);
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const TokenId id : ids) streamed += stream.push(id);
    if (streamed + stream.finish() != tokenizer.decode(ids, true)) __builtin_trap();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) __builtin_trap();
  }
  return 0;
}
