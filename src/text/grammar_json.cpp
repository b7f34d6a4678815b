// The fragments of GrammarBuilder that JSON is made of. White space and numbers are bounded here:
// a model that could go on with either for ever sometimes does. There is none before a comma or a
// colon.
#include <algorithm>

#include <fmt/format.h>

#include "text/grammar.h"

namespace glimpse {
namespace {

constexpr int kMaxIntegerDigits = 18;  // every such number fits 64 bits
constexpr int kMaxWholeDigits = 15;    // and every such number a double
constexpr int kMaxFractionDigits = 15;
constexpr int kMaxIndent = 32;

// So many that no double nearest to a decimal crosses the bound.
int fraction_digits(int64_t bound) {
  if (bound == GrammarBuilder::kMaxWhole) return kMaxFractionDigits;  // it is none
  return kMaxWholeDigits - static_cast<int>(fmt::formatted_size("{}", bound));
}

}  // namespace

StateId GrammarBuilder::white_space(StateId from) {
  if (white_space_rule_ == kUnlimited) {
    white_space_rule_ = new_state();
    const StateId end = new_state();
    state(end).ends_rule = true;
    jump(white_space_rule_, end);
    edge(white_space_rule_, ' ', end);
    StateId at = new_state();
    edge(white_space_rule_, '\n', at);
    for (int i = 0; i < kMaxIndent; ++i) {
      const StateId next = new_state();
      jump(at, end);
      edge(at, ' ', next);
      at = next;
    }
    jump(at, end);
  }
  return call(from, white_space_rule_);
}

StateId GrammarBuilder::string(StateId from, uint32_t min_length, uint32_t max_length) {
  const StateId inside = literal(from, "\"");
  const StateId end = new_state();
  GrammarState& body = state(inside);
  body.is_string = true;
  body.min_length = min_length;
  body.max_length = max_length;
  body.close = end;
  return end;
}

StateId GrammarBuilder::digits(StateId from, int at_least, int at_most) {
  const StateId end = new_state();
  for (int i = 0; i < at_most; ++i) {
    if (i >= at_least) jump(from, end);
    const StateId next = new_state();
    edge(from, '0', '9', next);
    from = next;
  }
  jump(from, end);
  return end;
}

// 0, or up to max_digits digits that begin with another.
void GrammarBuilder::add_whole_number(StateId from, int max_digits, StateId end) {
  edge(from, '0', end);
  const StateId rest = new_state();
  edge(from, '1', '9', rest);
  jump(digits(rest, 0, max_digits - 1), end);
}

StateId GrammarBuilder::integer(StateId from) {
  const StateId start = new_state();
  const StateId end = new_state();
  jump(from, start);
  edge(from, '-', start);
  add_whole_number(start, kMaxIntegerDigits, end);
  return end;
}

// ---- bounded numbers --------------------------------------------------------------------------

// Digit strings of one length, by their first digit.
void GrammarBuilder::add_digit_range(StateId from, std::string_view least, std::string_view most,
                                     StateId end) {
  const bool all = least.find_first_not_of('0') == std::string_view::npos &&
                   most.find_first_not_of('9') == std::string_view::npos;
  const auto rest = static_cast<int>(least.size()) - 1;
  if (all) return jump(digits(from, rest + 1, rest + 1), end);
  const auto follow = [&](char first, char last, std::string_view low, std::string_view high) {
    if (first > last) return;
    const StateId next = new_state();
    edge(from, first, last, next);
    add_digit_range(next, low, high, end);
  };
  const std::string zeros(least.size() - 1, '0');
  const std::string nines(least.size() - 1, '9');
  if (least[0] == most[0]) return follow(least[0], least[0], least.substr(1), most.substr(1));
  follow(least[0], least[0], least.substr(1), nines);
  follow(static_cast<char>(least[0] + 1), static_cast<char>(most[0] - 1), zeros, nines);
  follow(most[0], most[0], zeros, most.substr(1));
}

// least..most, neither below 0.
void GrammarBuilder::add_naturals(StateId from, int64_t least, int64_t most, StateId end) {
  if (least == 0 && most == kMaxInteger) return add_whole_number(from, kMaxIntegerDigits, end);
  if (least == 0 && most == kMaxWhole) return add_whole_number(from, kMaxWholeDigits, end);
  int64_t first = 0;
  for (int64_t last = 9;; last = last * 10 + 9) {
    if (last >= least) {
      add_digit_range(from, fmt::format("{}", std::max(first, least)),
                      fmt::format("{}", std::min(last, most)), end);
    }
    if (last >= most) return;  // 18 digits at most: one more would not fit
    first = last + 1;
  }
}

StateId GrammarBuilder::integer_between(StateId from, int64_t least, int64_t most) {
  const StateId end = new_state();
  const StateId natural = new_state();
  jump(from, natural);
  if (most >= 0) add_naturals(natural, std::max<int64_t>(least, 0), most, end);
  if (least < 0) {
    const StateId negative = new_state();
    edge(natural, '-', negative);
    add_naturals(negative, std::max<int64_t>(-most, 1), -least, end);
  }
  return end;
}

// Nothing, or a point and digits.
void GrammarBuilder::add_fraction(StateId from, int max_digits, StateId end) {
  jump(from, end);
  if (max_digits > 0) jump(digits(literal(from, "."), 1, max_digits), end);
}

void GrammarBuilder::add_fraction_above_zero(StateId from, int max_digits, StateId end) {
  StateId zeros = literal(from, ".");
  for (int i = max_digits - 1; i >= 0; --i) {
    const StateId above = new_state();
    edge(zeros, '1', '9', above);
    jump(digits(above, 0, i), end);
    const StateId more = new_state();
    edge(zeros, '0', more);
    zeros = more;
  }
}

// Decimals of bounds.least..most, neither below 0: whole parts below `most` with any fraction, and
// `most` itself. A fraction leads away from `least`, so that an excluded one needs it.
void GrammarBuilder::add_magnitudes(StateId from, const Bounds& bounds, StateId end) {
  const auto with_whole = [&](int64_t first, int64_t last) {
    const StateId whole = new_state();
    if (first <= last) add_naturals(from, first, last, whole);
    return whole;
  };
  int64_t first = bounds.least;
  if (bounds.above_least && first < bounds.most) {
    add_fraction_above_zero(with_whole(first, first), fraction_digits(first), end);
    ++first;
  }
  if (first < bounds.most) {
    add_fraction(with_whole(first, bounds.most - 1), fraction_digits(bounds.most), end);
  }
  const bool has_most = !bounds.below_most && !(bounds.above_least && bounds.least == bounds.most);
  if (!has_most) return;
  const StateId most = with_whole(bounds.most, bounds.most);
  jump(most, end);
  jump(literal(most, ".0"), end);
}

StateId GrammarBuilder::number_between(StateId from, const Bounds& bounds) {
  const StateId end = new_state();
  const StateId start = new_state();
  jump(from, start);
  if (bounds.most >= 0) {
    const bool is_cut = bounds.least < 0;  // at zero
    add_magnitudes(start,
                   {.least = is_cut ? 0 : bounds.least,
                    .most = bounds.most,
                    .above_least = !is_cut && bounds.above_least,
                    .below_most = bounds.below_most},
                   end);
  }
  if (bounds.least < 0) {
    const bool is_cut = bounds.most > 0;
    const StateId negative = new_state();
    edge(start, '-', negative);
    add_magnitudes(negative,
                   {.least = is_cut ? 0 : -bounds.most,
                    .most = -bounds.least,
                    .above_least = !is_cut && bounds.below_most,
                    .below_most = bounds.above_least},
                   end);
  }
  return end;
}

StateId GrammarBuilder::number(StateId from) {
  const StateId start = new_state();
  const StateId whole = new_state();
  jump(from, start);
  edge(from, '-', start);
  add_whole_number(start, kMaxWholeDigits, whole);
  const StateId fraction_end = new_state();
  jump(whole, fraction_end);
  jump(digits(literal(whole, "."), 1, kMaxFractionDigits), fraction_end);
  const StateId end = new_state();
  jump(fraction_end, end);
  const StateId exponent = new_state();
  edge(fraction_end, 'e', exponent);
  edge(fraction_end, 'E', exponent);
  const StateId magnitude = new_state();
  jump(exponent, magnitude);
  edge(exponent, '+', magnitude);
  edge(exponent, '-', magnitude);
  jump(digits(magnitude, 1, 2), end);
  return end;
}

void GrammarBuilder::make_value_rules() {
  value_rule_ = new_state();
  object_rule_ = new_state();
  const StateId value_end = new_state();
  const StateId object_end = new_state();
  state(value_end).ends_rule = true;
  state(object_end).ends_rule = true;

  jump(one_of(value_rule_, {"true", "false", "null"}), value_end);
  jump(string(value_rule_, 0, kUnlimited), value_end);
  const StateId number_start = new_state();
  jump(value_rule_, number_start);
  jump(number(number_start), value_end);
  jump(call(value_rule_, object_rule_), value_end);

  // What stands after "[" is another state than what stands after ",": there is no "[1, ]".
  const StateId first_item = white_space(literal(value_rule_, "["));
  edge(first_item, ']', value_end);
  const StateId item = new_state();
  jump(first_item, item);
  const StateId after_item = call(item, value_rule_);
  edge(white_space(after_item), ']', value_end);
  jump(white_space(literal(after_item, ",")), item);

  const StateId first_key = white_space(literal(object_rule_, "{"));
  edge(first_key, '}', object_end);
  const StateId key = new_state();
  jump(first_key, key);
  const StateId colon = literal(string(key, 0, kUnlimited), ":");
  const StateId after_member = call(white_space(colon), value_rule_);
  edge(white_space(after_member), '}', object_end);
  jump(white_space(literal(after_member, ",")), key);
}

StateId GrammarBuilder::any_value(StateId from) {
  if (value_rule_ == kUnlimited) make_value_rules();
  return call(from, value_rule_);
}

StateId GrammarBuilder::any_object(StateId from) {
  if (value_rule_ == kUnlimited) make_value_rules();
  return call(from, object_rule_);
}

}  // namespace glimpse
