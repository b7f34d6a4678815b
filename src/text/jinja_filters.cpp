// The filters and tests of the template language.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include "text/jinja_evaluation.h"
#include "text/jinja_strings.h"
#include "text/jinja_text_operations.h"

namespace glimpse::jinja {
namespace {

using std::string_view;

const Value kNothing;

const Value& argument_or_nothing(const Arguments& arguments, size_t place, string_view name) {
  const Value* value = Evaluation::argument(arguments, place, name);
  return value == nullptr ? kNothing : *value;
}

// ---- text ----

Value trim_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const Value* set = Evaluation::argument(arguments, 0, "chars");
  const bool given = set != nullptr && !set->is<None>();
  return evaluation.string(strip(evaluation.text_of(self),
                                 given ? &evaluation.text_argument(arguments, 0, "chars") : nullptr,
                                 StripSides::both));
}

template <LetterCase letter_case>
Value case_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  return evaluation.string(change_case(evaluation.text_of(self), letter_case));
}

Value replace_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const SourcedText text = evaluation.text_of(self);
  return evaluation.string(replace(evaluation, text, evaluation.text_argument(arguments, 0, "s"),
                                   evaluation.text_argument(arguments, 1, "new"),
                                   evaluation.integer_argument(arguments, 2, "count", -1)));
}

Value string_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  return self.text() != nullptr ? self : evaluation.string(evaluation.text_of(self));
}

Value indent_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const int64_t width = evaluation.integer_argument(arguments, 0, "width", 4);
  const bool first = argument_or_nothing(arguments, 1, "first").truthy();
  const bool blank = argument_or_nothing(arguments, 2, "blank").truthy();
  constexpr int64_t kWidest = 1000;
  if (width < 0 || width > kWidest) evaluation.unsupported(fmt::format("an indent of {}", width));
  const SourcedText margin(std::string(static_cast<size_t>(width), ' '), TextSource::chat_template);
  const SourcedText text = evaluation.text_of(self);
  SourcedText result;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.text().find('\n', begin), text.size());
    const bool wanted = begin == 0 ? first : blank || end > begin;
    if (wanted) {
      evaluation.charge(1 + margin.size() / 8);
      result.append(margin);
    }
    result.append(text.substr(begin, end + 1 - begin));
    begin = end + 1;
  }
  return evaluation.string(std::move(result));
}

/// dumps() of Python's json with its defaults; the text never counts as the template's.
Value tojson_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  JsonStyle style;
  constexpr int64_t kWidest = 100;
  const Value* ensure_ascii = Evaluation::argument(arguments, 1, "ensure_ascii");
  if (ensure_ascii != nullptr && ensure_ascii->truthy())
    evaluation.unsupported("tojson(ensure_ascii=true)");
  // transformers' tojson(x, ensure_ascii, indent, separators, sort_keys); only indent is usual.
  const Value* indent = Evaluation::argument(arguments, 0, "indent");
  if (!arguments.positional.empty() && !indent->is<int64_t>()) {
    evaluation.unsupported("tojson() with positional arguments");
  }
  const int64_t width = evaluation.integer_argument(arguments, 0, "indent", -1);
  if (width > kWidest) evaluation.unsupported(fmt::format("an indent of {}", width));
  style.indent = static_cast<int>(width);
  style.sort_keys = argument_or_nothing(arguments, 4, "sort_keys").truthy();
  if (const Value* separators = Evaluation::argument(arguments, 3, "separators");
      separators != nullptr && !separators->is<None>()) {
    const std::vector<Value> pair = evaluation.iterate(*separators);
    if (pair.size() != 2 || pair[0].text() == nullptr || pair[1].text() == nullptr) {
      evaluation.fail("tojson() needs two separators");
    }
    style.item_separator = pair[0].text()->text();
    style.key_separator = pair[1].text()->text();
  }
  evaluation.charge(self.weight());
  std::string text;
  if (!to_json(self, style, text)) evaluation.fail(fmt::format("tojson of a {}", self.type_name()));
  return evaluation.string(SourcedText(std::move(text), TextSource::conversation));
}

// ---- numbers ----

Value int_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const int64_t otherwise = evaluation.integer_argument(arguments, 0, "default", 0);
  int64_t result = 0;
  if (as_integer(self, result)) return Value::integer(result, self.scalar_source());
  double real = 0;
  if (const double* held = self.get<double>()) real = *held;
  if (const SourcedText* text = self.text()) {
    const std::string digits = strip(*text, nullptr, StripSides::both).text();
    const char* begin = digits.data() + (digits.starts_with('+') ? 1 : 0);
    const char* end = digits.data() + digits.size();
    const auto whole = std::from_chars(begin, end, result);
    if (whole.ec == std::errc() && whole.ptr == end)
      return Value::integer(result, text->overall_source());
    const auto parsed = std::from_chars(begin, end, real);
    if (parsed.ec != std::errc() || parsed.ptr != end) return Value::integer(otherwise);
  } else if (!self.is<double>()) {
    return Value::integer(otherwise);
  }
  constexpr double kLimit = 9.2e18;
  if (!(std::fabs(real) < kLimit)) return Value::integer(otherwise);
  return Value::integer(static_cast<int64_t>(real), TextSource::conversation);
}

Value float_filter(Evaluation&, const Value& self, const Arguments&) {
  double real = 0;
  if (self.is_number()) real = as_double(self);
  if (const SourcedText* text = self.text()) {
    const std::string digits = strip(*text, nullptr, StripSides::both).text();
    const char* end = digits.data() + digits.size();
    const auto parsed = std::from_chars(digits.data(), end, real);
    if (parsed.ec != std::errc() || parsed.ptr != end) real = 0;
  }
  return {Value::Held(real), TextSource::conversation};
}

Value abs_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  int64_t whole = 0;
  if (as_integer(self, whole) && whole != INT64_MIN)
    return Value::integer(std::abs(whole), self.scalar_source());
  if (!self.is<double>()) evaluation.fail(fmt::format("abs of a {}", self.type_name()));
  return {Value::Held(std::fabs(as_double(self))), self.scalar_source()};
}

// ---- lists ----

Value length_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  if (const auto* items = self.items()) return Value::integer(static_cast<int64_t>(items->size()));
  if (const Dict* dict = self.members())
    return Value::integer(static_cast<int64_t>(dict->members.size()));
  if (self.is<Undefined>()) return Value::integer(0);
  if (self.text() == nullptr) evaluation.fail(fmt::format("the length of a {}", self.type_name()));
  evaluation.charge(self.weight() / 8);
  return Value::integer(CodePoints(self.text()->text()).count());
}

Value default_filter(Evaluation&, const Value& self, const Arguments& arguments) {
  const bool replace_false = argument_or_nothing(arguments, 1, "boolean").truthy();
  if (!self.is<Undefined>() && (!replace_false || self.truthy())) return self;
  const Value* otherwise = Evaluation::argument(arguments, 0, "default_value");
  return otherwise == nullptr ? Value::string("", TextSource::chat_template) : *otherwise;
}

Value first_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  const std::vector<Value> items = evaluation.iterate(self);
  return items.empty() ? Value::undefined("first") : items.front();
}

Value last_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  const std::vector<Value> items = evaluation.iterate(self);
  return items.empty() ? Value::undefined("last") : items.back();
}

Value list_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  return evaluation.list(evaluation.iterate(self));
}

Value reverse_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  if (self.text() != nullptr) {
    evaluation.charge(self.weight());
    return evaluation.string(slice_text(*self.text(), {.start = {}, .stop = {}, .step = -1}));
  }
  std::vector<Value> items = evaluation.iterate(self);
  std::reverse(items.begin(), items.end());
  return evaluation.list(std::move(items));
}

Value items_filter(Evaluation& evaluation, const Value& self, const Arguments&) {
  if (self.is<Undefined>()) return evaluation.list({});
  if (self.members() == nullptr)
    evaluation.fail(fmt::format("the items of a {}", self.type_name()));
  return dict_items(evaluation, *self.members());
}

/// "a.b.0" of a value, as attribute arguments name it.
Value attribute_path(Evaluation& evaluation, Value value, const std::string& path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string name = path.substr(begin, end - begin);
    int64_t index = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool number = parsed.ec == std::errc() && parsed.ptr == name.data() + name.size();
    value = evaluation.item(
        value, number ? Value::integer(index) : Value::string(name, TextSource::chat_template));
    begin = end + 1;
  }
  return value;
}

Value join_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const Value& separator_value = argument_or_nothing(arguments, 0, "d");
  const SourcedText separator = evaluation.text_of(separator_value);
  const Value* attribute = Evaluation::argument(arguments, 1, "attribute");
  SourcedText result;
  bool first = true;
  for (const Value& item : evaluation.iterate(self)) {
    if (!first) {
      evaluation.charge(1 + separator.size() / 8);
      result.append(separator);
    }
    first = false;
    const bool whole = attribute == nullptr || attribute->is<None>();
    result.append(evaluation.text_of(
        whole ? item
              : attribute_path(evaluation, item,
                               evaluation.text_argument(arguments, 1, "attribute").text())));
  }
  return evaluation.string(std::move(result));
}

/// The rest of a filter's arguments, for the filter or test that it applies to every item.
Arguments without_first(const Arguments& arguments, size_t count) {
  Arguments rest;
  for (size_t i = count; i < arguments.positional.size(); ++i)
    rest.positional.push_back(arguments.positional[i]);
  rest.named = arguments.named;
  return rest;
}

Value map_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  std::vector<Value> result;
  if (arguments.positional.empty()) {
    const std::string path = evaluation.text_argument(arguments, 0, "attribute").text();
    const Value* otherwise = Evaluation::argument(arguments, 1, "default");
    for (const Value& item : evaluation.iterate(self)) {
      Value found = attribute_path(evaluation, item, path);
      if (found.is<Undefined>() && otherwise != nullptr) found = *otherwise;
      result.push_back(std::move(found));
    }
    return evaluation.list(std::move(result));
  }
  const std::string name = evaluation.text_argument(arguments, 0, "filter").text();
  const Builtin filter = find_filter(name);
  if (filter == nullptr) evaluation.unsupported(fmt::format("the filter \"{}\"", name));
  // Without this, map('map', 'map', ...) would recurse as deep as it is long.
  if (filter == Builtin{map_filter}) evaluation.unsupported("map('map')");
  const Arguments rest = without_first(arguments, 1);
  for (const Value& item : evaluation.iterate(self))
    result.push_back(filter(evaluation, item, rest));
  return evaluation.list(std::move(result));
}

enum class Keep : uint8_t { passing, failing };
enum class Tested : uint8_t { item, attribute };

template <Keep keep, Tested tested>
Value select_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  constexpr size_t kTestPlace = tested == Tested::attribute ? 1 : 0;
  std::string path;
  if (tested == Tested::attribute)
    path = evaluation.text_argument(arguments, 0, "attribute").text();
  Builtin test = nullptr;
  if (Evaluation::argument(arguments, kTestPlace, "test") != nullptr) {
    const std::string name = evaluation.text_argument(arguments, kTestPlace, "test").text();
    test = find_test(name);
    if (test == nullptr) evaluation.unsupported(fmt::format("the test \"{}\"", name));
  }
  const Arguments rest = without_first(arguments, kTestPlace + 1);
  std::vector<Value> result;
  for (const Value& item : evaluation.iterate(self)) {
    const Value subject =
        tested == Tested::attribute ? attribute_path(evaluation, item, path) : item;
    const bool passes =
        test == nullptr ? subject.truthy() : test(evaluation, subject, rest).truthy();
    if (passes == (keep == Keep::passing)) result.push_back(item);
  }
  return evaluation.list(std::move(result));
}

/// What sort, min, max and unique compare: the item or its attribute, letters alike unless asked.
Value comparison_key(Evaluation& evaluation, const Value& item, const Value& attribute,
                     bool case_sensitive) {
  Value key = attribute.text() != nullptr
                  ? attribute_path(evaluation, item, attribute.text()->text())
                  : item;
  if (!case_sensitive && key.text() != nullptr) {
    key = evaluation.string(change_case(*key.text(), LetterCase::lower));
  }
  return key;
}

struct Keyed {
  Value key;
  Value item;
};

std::vector<Keyed> keyed_items(Evaluation& evaluation, const Value& self, const Value& attribute,
                               bool case_sensitive) {
  std::vector<Keyed> result;
  for (Value& item : evaluation.iterate(self)) {
    result.push_back({comparison_key(evaluation, item, attribute, case_sensitive), item});
  }
  return result;
}

/// Stable, and without std::sort's trust in the order: NaN among the keys only misplaces items.
Value sorted(Evaluation& evaluation, std::vector<Keyed> items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? evaluation.less(b.key, a.key) : evaluation.less(a.key, b.key);
  });
  std::vector<Value> result;
  for (Keyed& item : items) result.push_back(std::move(item.item));
  return evaluation.list(std::move(result));
}

Value sort_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const bool case_sensitive = argument_or_nothing(arguments, 1, "case_sensitive").truthy();
  return sorted(
      evaluation,
      keyed_items(evaluation, self, argument_or_nothing(arguments, 2, "attribute"), case_sensitive),
      argument_or_nothing(arguments, 0, "reverse").truthy());
}

Value dictsort_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  if (self.members() == nullptr) evaluation.fail(fmt::format("dictsort of a {}", self.type_name()));
  if (!arguments.positional.empty() || !arguments.named.empty())
    evaluation.unsupported("dictsort with arguments");
  std::vector<Keyed> items;
  for (const auto& [key, value] : self.members()->members) {
    items.push_back({evaluation.string(change_case(key, LetterCase::lower)),
                     evaluation.list({evaluation.string(key), value})});
  }
  return sorted(evaluation, std::move(items), false);
}

Value unique_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  std::vector<Keyed> kept;
  const bool case_sensitive = argument_or_nothing(arguments, 0, "case_sensitive").truthy();
  for (Keyed& entry : keyed_items(evaluation, self, argument_or_nothing(arguments, 1, "attribute"),
                                  case_sensitive)) {
    evaluation.charge(1 + kept.size() + entry.key.weight() / 8);
    const bool seen = std::any_of(kept.begin(), kept.end(),
                                  [&](const Keyed& k) { return equal(k.key, entry.key); });
    if (!seen) kept.push_back(std::move(entry));
  }
  std::vector<Value> result;
  for (Keyed& entry : kept) result.push_back(std::move(entry.item));
  return evaluation.list(std::move(result));
}

template <bool largest>
Value extreme_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const bool case_sensitive = argument_or_nothing(arguments, 0, "case_sensitive").truthy();
  const auto items =
      keyed_items(evaluation, self, argument_or_nothing(arguments, 1, "attribute"), case_sensitive);
  if (items.empty()) return Value::undefined("an element of an empty list");
  const Keyed* best = &items[0];
  for (const Keyed& entry : items) {
    if (largest ? evaluation.less(best->key, entry.key) : evaluation.less(entry.key, best->key))
      best = &entry;
  }
  return best->item;
}

Value sum_filter(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  if (!arguments.positional.empty() || !arguments.named.empty())
    evaluation.unsupported("sum with arguments");
  int64_t total = 0;
  for (const Value& item : evaluation.iterate(self)) {
    int64_t number = 0;
    if (!as_integer(item, number))
      evaluation.unsupported(fmt::format("the sum of a {}", item.type_name()));
    if (__builtin_add_overflow(total, number, &total))
      evaluation.unsupported("an integer beyond 64 bits");
  }
  return Value::integer(total, TextSource::conversation);
}

// ---- tests ----

Value defined_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(!v.is<Undefined>());
}
Value undefined_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<Undefined>());
}
Value none_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<None>());
}
Value string_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.text() != nullptr);
}
Value mapping_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.members() != nullptr);
}
Value sequence_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.text() != nullptr || v.items() != nullptr || v.members() != nullptr ||
                        v.is<Undefined>());
}
Value number_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is_number());
}
Value integer_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<int64_t>());
}
Value float_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<double>());
}
Value boolean_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<bool>());
}
Value true_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<bool>() && v.truthy());
}
Value false_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<bool>() && !v.truthy());
}
Value callable_test(Evaluation&, const Value& v, const Arguments&) {
  return Value::boolean(v.is<Macro>());
}

int64_t remainder(Evaluation& evaluation, const Value& value, int64_t divisor) {
  int64_t number = 0;
  if (!as_integer(value, number))
    evaluation.fail(fmt::format("divisibility of a {}", value.type_name()));
  if (divisor == 0) evaluation.fail("division by zero");
  return divisor == -1 ? 0 : number % divisor;
}
Value odd_test(Evaluation& e, const Value& v, const Arguments&) {
  return Value::boolean(remainder(e, v, 2) != 0);
}
Value even_test(Evaluation& e, const Value& v, const Arguments&) {
  return Value::boolean(remainder(e, v, 2) == 0);
}
Value divisibleby_test(Evaluation& e, const Value& v, const Arguments& arguments) {
  return Value::boolean(remainder(e, v, e.integer_argument(arguments, 0, "num", 0)) == 0);
}

const Value& other_side(Evaluation& evaluation, const Arguments& arguments) {
  if (arguments.positional.size() != 1) evaluation.fail("a comparison needs one argument");
  return arguments.positional[0];
}
Value equal_test(Evaluation& e, const Value& v, const Arguments& arguments) {
  const Value& other = other_side(e, arguments);
  e.charge(std::min(v.weight(), other.weight()) / 8);
  return Value::boolean(equal(v, other));
}
Value unequal_test(Evaluation& e, const Value& v, const Arguments& arguments) {
  return Value::boolean(!equal_test(e, v, arguments).truthy());
}
Value less_test(Evaluation& e, const Value& v, const Arguments& a) {
  return Value::boolean(e.less(v, other_side(e, a)));
}
Value greater_test(Evaluation& e, const Value& v, const Arguments& a) {
  return Value::boolean(e.less(other_side(e, a), v));
}
Value at_most_test(Evaluation& e, const Value& v, const Arguments& a) {
  return Value::boolean(!e.less(other_side(e, a), v));
}
Value at_least_test(Evaluation& e, const Value& v, const Arguments& a) {
  return Value::boolean(!e.less(v, other_side(e, a)));
}
Value in_test(Evaluation& e, const Value& v, const Arguments& a) {
  return Value::boolean(e.contains(other_side(e, a), v));
}

struct NamedBuiltin {
  string_view name;
  Builtin function;
};

constexpr std::array kFilters = {
    NamedBuiltin{"trim", trim_filter},
    NamedBuiltin{"upper", case_filter<LetterCase::upper>},
    NamedBuiltin{"lower", case_filter<LetterCase::lower>},
    NamedBuiltin{"title", case_filter<LetterCase::title>},
    NamedBuiltin{"capitalize", case_filter<LetterCase::capitalized>},
    NamedBuiltin{"replace", replace_filter},
    NamedBuiltin{"string", string_filter},
    NamedBuiltin{"safe", string_filter},
    NamedBuiltin{"indent", indent_filter},
    NamedBuiltin{"tojson", tojson_filter},
    NamedBuiltin{"int", int_filter},
    NamedBuiltin{"float", float_filter},
    NamedBuiltin{"abs", abs_filter},
    NamedBuiltin{"length", length_filter},
    NamedBuiltin{"count", length_filter},
    NamedBuiltin{"default", default_filter},
    NamedBuiltin{"d", default_filter},
    NamedBuiltin{"first", first_filter},
    NamedBuiltin{"last", last_filter},
    NamedBuiltin{"list", list_filter},
    NamedBuiltin{"reverse", reverse_filter},
    NamedBuiltin{"items", items_filter},
    NamedBuiltin{"join", join_filter},
    NamedBuiltin{"map", map_filter},
    NamedBuiltin{"select", select_filter<Keep::passing, Tested::item>},
    NamedBuiltin{"reject", select_filter<Keep::failing, Tested::item>},
    NamedBuiltin{"selectattr", select_filter<Keep::passing, Tested::attribute>},
    NamedBuiltin{"rejectattr", select_filter<Keep::failing, Tested::attribute>},
    NamedBuiltin{"sort", sort_filter},
    NamedBuiltin{"dictsort", dictsort_filter},
    NamedBuiltin{"unique", unique_filter},
    NamedBuiltin{"min", extreme_filter<false>},
    NamedBuiltin{"max", extreme_filter<true>},
    NamedBuiltin{"sum", sum_filter},
};

constexpr std::array kTests = {
    NamedBuiltin{"defined", defined_test},
    NamedBuiltin{"undefined", undefined_test},
    NamedBuiltin{"none", none_test},
    NamedBuiltin{"string", string_test},
    NamedBuiltin{"mapping", mapping_test},
    NamedBuiltin{"sequence", sequence_test},
    NamedBuiltin{"iterable", sequence_test},
    NamedBuiltin{"number", number_test},
    NamedBuiltin{"integer", integer_test},
    NamedBuiltin{"float", float_test},
    NamedBuiltin{"boolean", boolean_test},
    NamedBuiltin{"true", true_test},
    NamedBuiltin{"false", false_test},
    NamedBuiltin{"callable", callable_test},
    NamedBuiltin{"odd", odd_test},
    NamedBuiltin{"even", even_test},
    NamedBuiltin{"divisibleby", divisibleby_test},
    NamedBuiltin{"equalto", equal_test},
    NamedBuiltin{"eq", equal_test},
    NamedBuiltin{"ne", unequal_test},
    NamedBuiltin{"lt", less_test},
    NamedBuiltin{"lessthan", less_test},
    NamedBuiltin{"gt", greater_test},
    NamedBuiltin{"greaterthan", greater_test},
    NamedBuiltin{"le", at_most_test},
    NamedBuiltin{"ge", at_least_test},
    NamedBuiltin{"in", in_test},
};

template <typename Table>
Builtin find_in(const Table& table, string_view name) {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const NamedBuiltin& b) { return b.name == name; });
  return found == table.end() ? nullptr : found->function;
}

}  // namespace

Builtin find_filter(string_view name) {
  return find_in(kFilters, name);
}
Builtin find_test(string_view name) {
  return find_in(kTests, name);
}

}  // namespace glimpse::jinja
