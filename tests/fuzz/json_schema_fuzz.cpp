// Any bytes as a JSON schema; what compiles must be followable to valid JSON. What stands after the
// first 0xFF byte (which no JSON holds) chooses among the bytes that the grammar allows.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/grammar_matcher.h"
#include "text/json_schema.h"

namespace {

constexpr size_t kMaxBytes = 400;

void follow(const glimpse::Grammar& grammar, std::string_view choices) {
  using namespace glimpse;
  GrammarMatcher matcher(grammar);
  GrammarPositions positions = matcher.start();
  std::string text;
  while (text.size() < kMaxBytes) {
    std::vector<GrammarPositions> nexts;
    std::string allowed;
    for (int byte = 0; byte < 256; ++byte) {
      GrammarPositions next;
      matcher.step(positions, static_cast<uint8_t>(byte), next);
      if (next.empty()) continue;
      nexts.push_back(std::move(next));
      allowed += static_cast<char>(byte);
    }
    const bool is_complete = GrammarMatcher::is_complete(positions);
    if (is_complete && !Json::accept(text)) __builtin_trap();
    if (nexts.empty()) {
      if (!is_complete) __builtin_trap();  // stuck
      return;
    }
    const size_t choice =
        text.size() < choices.size() ? static_cast<uint8_t>(choices[text.size()]) : 0;
    text += allowed[choice % allowed.size()];
    positions = std::move(nexts[choice % nexts.size()]);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace glimpse;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view schema = input.substr(0, input.find('\xFF'));
  try {
    follow(compile_json_schema(parse_json(schema, "a schema", ErrorCode::invalid_argument)),
           input.substr(std::min(schema.size() + 1, size)));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) __builtin_trap();
  }
  return 0;
}
