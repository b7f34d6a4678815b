#include "text/string_formats.h"

#include <string>
#include <vector>

#include <fmt/format.h>

namespace glimpse {
namespace {

// The numbers first..last with two digits.
std::vector<std::string> two_digits(int first, int last) {
  std::vector<std::string> numbers;
  for (int i = first; i <= last; ++i) numbers.push_back(fmt::format("{:02}", i));
  return numbers;
}

// February has 28 days: whether it has one more depends on the year. Years have no leading zero:
// many readers know no year 0.
StateId add_date(GrammarBuilder& builder, StateId from) {
  const StateId century = builder.new_state();
  builder.edge(from, '1', '9', century);
  const StateId month = builder.literal(builder.digits(century, 3, 3), "-");
  const StateId end = builder.new_state();
  const auto add_days = [&](const std::vector<std::string>& months, int last) {
    const StateId day = builder.literal(builder.one_of(month, months), "-");
    builder.jump(builder.one_of(day, two_digits(1, last)), end);
  };
  add_days({"01", "03", "05", "07", "08", "10", "12"}, 31);
  add_days({"04", "06", "09", "11"}, 30);
  add_days({"02"}, 28);
  return end;
}

StateId add_hours_and_minutes(GrammarBuilder& builder, StateId from) {
  const StateId hours = builder.one_of(from, two_digits(0, 23));
  return builder.one_of(builder.literal(hours, ":"), two_digits(0, 59));
}

StateId add_time(GrammarBuilder& builder, StateId from) {
  const StateId minutes = add_hours_and_minutes(builder, from);
  const StateId seconds = builder.one_of(builder.literal(minutes, ":"), two_digits(0, 59));
  const StateId zone = builder.new_state();
  builder.jump(seconds, zone);
  builder.jump(builder.digits(builder.literal(seconds, "."), 1, 6), zone);
  const StateId end = builder.literal(zone, "Z");
  const StateId offset = builder.new_state();
  builder.edge(zone, '+', offset);
  builder.edge(zone, '-', offset);
  builder.jump(add_hours_and_minutes(builder, offset), end);
  return end;
}

StateId add_uuid(GrammarBuilder& builder, StateId from) {
  constexpr int kDigits = 32;
  for (int i = 0; i < kDigits; ++i) {
    if (i == 8 || i == 12 || i == 16 || i == 20) from = builder.literal(from, "-");
    const StateId next = builder.new_state();
    builder.edge(from, '0', '9', next);
    builder.edge(from, 'a', 'f', next);
    from = next;
  }
  return from;
}

StateId add_ipv4(GrammarBuilder& builder, StateId from) {
  for (int i = 0; i < 4; ++i) {
    from = builder.integer_between(i == 0 ? from : builder.literal(from, "."), 0, 255);
  }
  return from;
}

}  // namespace

std::optional<StateId> add_format(GrammarBuilder& builder, StateId from, std::string_view format) {
  if (format == "date") return add_date(builder, from);
  if (format == "time") return add_time(builder, from);
  if (format == "date-time") {
    return add_time(builder, builder.literal(add_date(builder, from), "T"));
  }
  if (format == "uuid") return add_uuid(builder, from);
  if (format == "ipv4") return add_ipv4(builder, from);
  return std::nullopt;
}

}  // namespace glimpse
