// The inside of a JSON string as a table of byte transitions: well-formed UTF-8 without control
// characters, escapes included. Escaped surrogates are refused, so that every string is text.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace glimpse {

/// What one byte does inside a string.
struct StringStep {
  static constexpr uint8_t kPlain = 0;  ///< between two characters
  static constexpr uint8_t kStates = 14;
  enum class Kind : uint8_t { refused, inside, closed };
  Kind kind = Kind::refused;
  uint8_t next = kPlain;
  uint8_t begun = 0;  ///< 1 when the byte begins a character
};

namespace string_steps {

// States: 0 plain; 1 after a backslash; 2, 3, 5, 6 before the first to fourth hexadecimal digit of
// \u, where 4 stands for 3 after "d" (only 0..7 may follow: the rest are surrogates); 7..9 one to
// three continuation bytes are due; 10..13 the second byte after E0, ED, F0 and F4.
constexpr uint8_t state_after_first(int byte) {
  constexpr uint8_t kNone = 255;
  if (byte == '\\') return 1;
  if (byte < 0x80) return byte < 0x20 ? kNone : StringStep::kPlain;
  if (byte == 0xE0) return 10;
  if (byte == 0xED) return 11;
  if (byte == 0xF0) return 12;
  if (byte == 0xF4) return 13;
  if (byte >= 0xC2 && byte <= 0xDF) return 7;
  if (byte >= 0xE1 && byte <= 0xEF) return 8;
  if (byte >= 0xF1 && byte <= 0xF3) return 9;
  return kNone;
}

constexpr StringStep step(int inside, int byte) {
  constexpr StringStep kRefused{};
  const auto to = [&](bool allowed, uint8_t next) {
    return allowed ? StringStep{StringStep::Kind::inside, next, 0} : kRefused;
  };
  const auto within = [&](int first, int last) { return byte >= first && byte <= last; };
  const bool is_hex = within('0', '9') || within('a', 'f') || within('A', 'F');
  switch (inside) {
    case 0: {
      if (byte == '"') return {StringStep::Kind::closed, 0, 0};
      const uint8_t next = state_after_first(byte);
      return next == 255 ? kRefused : StringStep{StringStep::Kind::inside, next, 1};
    }
    case 1: {
      constexpr std::string_view kEscapes = "\"\\/bfnrt";
      if (byte == 'u') return to(true, 2);
      return to(kEscapes.find(static_cast<char>(byte)) != std::string_view::npos, 0);
    }
    case 2:
      return to(is_hex, byte == 'd' || byte == 'D' ? 4 : 3);
    case 3:
      return to(is_hex, 5);
    case 4:
      return to(within('0', '7'), 5);
    case 5:
      return to(is_hex, 6);
    case 6:
      return to(is_hex, 0);
    case 7:
      return to(within(0x80, 0xBF), 0);
    case 8:
      return to(within(0x80, 0xBF), 7);
    case 9:
      return to(within(0x80, 0xBF), 8);
    case 10:
      return to(within(0xA0, 0xBF), 7);
    case 11:
      return to(within(0x80, 0x9F), 7);
    case 12:
      return to(within(0x90, 0xBF), 8);
    default:
      return to(within(0x80, 0x8F), 8);
  }
}

constexpr auto make_table() {
  std::array<std::array<StringStep, 256>, StringStep::kStates> table{};
  for (size_t inside = 0; inside < table.size(); ++inside) {
    for (size_t byte = 0; byte < 256; ++byte) {
      table[inside][byte] = step(static_cast<int>(inside), static_cast<int>(byte));
    }
  }
  return table;
}

inline constexpr auto kTable = make_table();

}  // namespace string_steps

[[nodiscard]] inline StringStep string_step(uint8_t inside, uint8_t byte) {
  return string_steps::kTable[inside][byte];
}

}  // namespace glimpse
