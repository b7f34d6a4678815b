// The methods of strings, dicts and loops that templates may call.
#include "text/jinja_strings.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <utf8proc.h>

#include "text/jinja_evaluation.h"
#include "text/jinja_text_operations.h"
#include "text/unicode.h"

namespace glimpse::jinja {
namespace {

/// What Python's str.isspace() says of a code point.
bool is_space(char32_t c) {
  if ((c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85) return true;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

char32_t code_point_at(std::string_view text, size_t at) {
  return utf8_step(text.substr(at)).code_point;
}

/// The code points of `set`, or white space when there is none.
bool is_stripped(char32_t c, const SourcedText* set) {
  if (set == nullptr) return is_space(c);
  std::string character;
  append_utf8(character, c);
  return set->text().find(character) != std::string::npos;
}

/// Who a method is called on, which must be a string.
const SourcedText& subject(Evaluation& evaluation, const Value& self, std::string_view method) {
  if (const auto* undefined = self.get<Undefined>()) {
    evaluation.fail(fmt::format("'{}' is undefined", undefined->name));
  }
  if (self.text() == nullptr) {
    evaluation.fail(fmt::format("a {} has no method \"{}\"", self.type_name(), method));
  }
  evaluation.charge(self.weight() / 8);
  return *self.text();
}

const Dict& dict_subject(Evaluation& evaluation, const Value& self, std::string_view method) {
  if (const auto* undefined = self.get<Undefined>()) {
    evaluation.fail(fmt::format("'{}' is undefined", undefined->name));
  }
  if (self.members() == nullptr) {
    evaluation.fail(fmt::format("a {} has no method \"{}\"", self.type_name(), method));
  }
  evaluation.charge(self.members()->members.size());
  return *self.members();
}

template <StripSides sides>
Value strip_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const Value* set = Evaluation::argument(arguments, 0, "chars");
  const bool given = set != nullptr && !set->is<None>();
  const SourcedText* characters =
      given ? &evaluation.text_argument(arguments, 0, "chars") : nullptr;
  return evaluation.string(strip(subject(evaluation, self, "strip"), characters, sides));
}

std::vector<Value> split_at_spaces(Evaluation& evaluation, const SourcedText& text, int64_t limit) {
  std::vector<Value> parts;
  size_t at = 0;
  const std::string& bytes = text.text();
  const auto skip = [&](bool spaces) {
    while (at < bytes.size()) {
      const Utf8Step step = utf8_step(std::string_view(bytes).substr(at));
      if (is_space(step.code_point) != spaces) return;
      at += static_cast<size_t>(step.length);
    }
  };
  for (skip(true); at < bytes.size(); skip(true)) {
    const size_t begin = at;
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(evaluation.string(text.substr(begin)));
      break;
    }
    skip(false);
    parts.push_back(evaluation.string(text.substr(begin, at - begin)));
  }
  return parts;
}

Value split_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const SourcedText& text = subject(evaluation, self, "split");
  const int64_t limit = evaluation.integer_argument(arguments, 1, "maxsplit", -1);
  const Value* separator_value = Evaluation::argument(arguments, 0, "sep");
  if (separator_value == nullptr || separator_value->is<None>()) {
    return evaluation.list(split_at_spaces(evaluation, text, limit));
  }
  const std::string& separator = evaluation.text_argument(arguments, 0, "sep").text();
  if (separator.empty()) evaluation.fail("split() at an empty string");
  std::vector<Value> parts;
  size_t begin = 0;
  for (;;) {
    const bool more = limit < 0 || static_cast<int64_t>(parts.size()) < limit;
    const size_t end = more ? text.text().find(separator, begin) : std::string::npos;
    if (end == std::string::npos) break;
    parts.push_back(evaluation.string(text.substr(begin, end - begin)));
    begin = end + separator.size();
  }
  parts.push_back(evaluation.string(text.substr(begin)));
  return evaluation.list(std::move(parts));
}

Value rsplit_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const SourcedText& text = subject(evaluation, self, "rsplit");
  const int64_t limit = evaluation.integer_argument(arguments, 1, "maxsplit", -1);
  const Value* separator_value = Evaluation::argument(arguments, 0, "sep");
  if (separator_value == nullptr || separator_value->is<None>()) {
    if (limit >= 0) evaluation.unsupported("rsplit() at white space with a limit");
    return evaluation.list(split_at_spaces(evaluation, text, limit));
  }
  const std::string& separator = evaluation.text_argument(arguments, 0, "sep").text();
  if (separator.empty()) evaluation.fail("rsplit() at an empty string");
  std::vector<Value> parts;
  size_t end = text.size();
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    if (end < separator.size()) break;
    const size_t found = text.text().rfind(separator, end - separator.size());
    if (found == std::string::npos) break;
    const size_t begin = found + separator.size();
    parts.push_back(evaluation.string(text.substr(begin, end - begin)));
    end = found;
  }
  parts.push_back(evaluation.string(text.substr(0, end)));
  std::reverse(parts.begin(), parts.end());
  return evaluation.list(std::move(parts));
}

Value splitlines_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const SourcedText& text = subject(evaluation, self, "splitlines");
  if (!arguments.positional.empty() || !arguments.named.empty()) {
    evaluation.unsupported("splitlines() with arguments");
  }
  std::vector<Value> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.text().find_first_of("\r\n", begin), text.size());
    lines.push_back(evaluation.string(text.substr(begin, end - begin)));
    const bool pair = text.text().compare(end, 2, "\r\n") == 0;
    begin = end + (pair ? 2 : 1);
  }
  return evaluation.list(std::move(lines));
}

/// startswith and endswith take one string or a tuple of them.
template <typename Matches>
Value match_any(Evaluation& evaluation, const Arguments& arguments, Matches matches) {
  if (arguments.positional.size() != 1)
    evaluation.unsupported("startswith() or endswith() with a range");
  const Value& choices = arguments.positional[0];
  if (choices.text() != nullptr) return Value::boolean(matches(choices.text()->text()));
  for (const Value& choice : evaluation.iterate(choices)) {
    if (choice.text() != nullptr && matches(choice.text()->text())) return Value::boolean(true);
  }
  return Value::boolean(false);
}

Value startswith_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const std::string& text = subject(evaluation, self, "startswith").text();
  return match_any(evaluation, arguments,
                   [&](const std::string& s) { return text.starts_with(s); });
}

Value endswith_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const std::string& text = subject(evaluation, self, "endswith").text();
  return match_any(evaluation, arguments, [&](const std::string& s) { return text.ends_with(s); });
}

template <LetterCase letter_case>
Value case_method(Evaluation& evaluation, const Value& self, const Arguments&) {
  return evaluation.string(change_case(subject(evaluation, self, "upper"), letter_case));
}

Value replace_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const SourcedText& text = subject(evaluation, self, "replace");
  const SourcedText& from = evaluation.text_argument(arguments, 0, "old");
  const SourcedText& to = evaluation.text_argument(arguments, 1, "new");
  const int64_t limit = evaluation.integer_argument(arguments, 2, "count", -1);
  return evaluation.string(replace(evaluation, text, from, to, limit));
}

template <bool from_right>
Value find_method_of(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const std::string& text = subject(evaluation, self, "find").text();
  const std::string& wanted = evaluation.text_argument(arguments, 0, "sub").text();
  if (arguments.positional.size() > 1) evaluation.unsupported("find() with a range");
  const size_t at = from_right ? text.rfind(wanted) : text.find(wanted);
  if (at == std::string::npos) return Value::integer(-1);
  return Value::integer(CodePoints(std::string_view(text).substr(0, at)).count());
}

Value count_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const std::string& text = subject(evaluation, self, "count").text();
  const std::string& wanted = evaluation.text_argument(arguments, 0, "sub").text();
  if (wanted.empty()) return Value::integer(CodePoints(text).count() + 1);
  int64_t count = 0;
  for (size_t at = text.find(wanted); at != std::string::npos;
       at = text.find(wanted, at + wanted.size())) {
    ++count;
  }
  return Value::integer(count);
}

Value join_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const SourcedText& separator = subject(evaluation, self, "join");
  if (arguments.positional.size() != 1) evaluation.fail("join() takes one list");
  SourcedText result;
  bool first = true;
  for (const Value& part : evaluation.iterate(arguments.positional[0])) {
    if (part.text() == nullptr) evaluation.fail(fmt::format("join() of a {}", part.type_name()));
    evaluation.charge(1 + (separator.size() + part.text()->size()) / 8);
    if (!first) result.append(separator);
    result.append(*part.text());
    first = false;
  }
  return evaluation.string(std::move(result));
}

template <bool prefix>
Value remove_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const SourcedText& text = subject(evaluation, self, "removeprefix");
  const std::string& part = evaluation.text_argument(arguments, 0, "prefix").text();
  if (prefix && text.text().starts_with(part)) return evaluation.string(text.substr(part.size()));
  if (!prefix && text.text().ends_with(part))
    return evaluation.string(text.substr(0, text.size() - part.size()));
  return self;
}

/// True for a text of one or more characters that are all of one kind.
template <typename Is>
Value all_characters(Evaluation& evaluation, const Value& self, Is is) {
  const std::string& text = subject(evaluation, self, "isdigit").text();
  bool all = !text.empty();
  for (size_t at = 0; all && at < text.size();) {
    const Utf8Step step = utf8_step(std::string_view(text).substr(at));
    all = is(step.code_point);
    at += static_cast<size_t>(step.length);
  }
  return Value::boolean(all);
}

Value isdigit_method(Evaluation& evaluation, const Value& self, const Arguments&) {
  return all_characters(evaluation, self, [](char32_t c) {
    return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_ND;
  });
}

Value isalpha_method(Evaluation& evaluation, const Value& self, const Arguments&) {
  return all_characters(evaluation, self, [](char32_t c) {
    const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
  });
}

Value isspace_method(Evaluation& evaluation, const Value& self, const Arguments&) {
  return all_characters(evaluation, self, is_space);
}

// ---- dicts and loops ----

Value items_method(Evaluation& evaluation, const Value& self, const Arguments&) {
  return dict_items(evaluation, dict_subject(evaluation, self, "items"));
}

Value keys_method(Evaluation& evaluation, const Value& self, const Arguments&) {
  dict_subject(evaluation, self, "keys");
  return evaluation.list(evaluation.iterate(self));
}

Value values_method(Evaluation& evaluation, const Value& self, const Arguments&) {
  std::vector<Value> values;
  for (const auto& [key, value] : dict_subject(evaluation, self, "values").members)
    values.push_back(value);
  return evaluation.list(std::move(values));
}

Value get_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const Dict& dict = dict_subject(evaluation, self, "get");
  const Value* found = dict.find(evaluation.text_argument(arguments, 0, "key").text());
  if (found != nullptr) return *found;
  const Value* otherwise = Evaluation::argument(arguments, 1, "default");
  return otherwise == nullptr ? Value::none() : *otherwise;
}

/// loop.cycle(a, b, ...)
Value cycle_method(Evaluation& evaluation, const Value& self, const Arguments& arguments) {
  const Value* index = dict_subject(evaluation, self, "cycle").find("index0");
  int64_t i = 0;
  if (index == nullptr || !as_integer(*index, i) || arguments.positional.empty()) {
    evaluation.fail("cycle() outside a loop or of nothing");
  }
  return arguments.positional[static_cast<size_t>(i) % arguments.positional.size()];
}

struct NamedMethod {
  std::string_view name;
  Builtin function;
};

constexpr std::array<NamedMethod, 28> kMethods = {{
    {"strip", strip_method<StripSides::both>},
    {"lstrip", strip_method<StripSides::left>},
    {"rstrip", strip_method<StripSides::right>},
    {"split", split_method},
    {"rsplit", rsplit_method},
    {"splitlines", splitlines_method},
    {"startswith", startswith_method},
    {"endswith", endswith_method},
    {"upper", case_method<LetterCase::upper>},
    {"lower", case_method<LetterCase::lower>},
    {"title", case_method<LetterCase::title>},
    {"capitalize", case_method<LetterCase::capitalized>},
    {"replace", replace_method},
    {"find", find_method_of<false>},
    {"rfind", find_method_of<true>},
    {"count", count_method},
    {"join", join_method},
    {"removeprefix", remove_method<true>},
    {"removesuffix", remove_method<false>},
    {"isdigit", isdigit_method},
    {"isalpha", isalpha_method},
    {"isspace", isspace_method},
    {"items", items_method},
    {"keys", keys_method},
    {"values", values_method},
    {"get", get_method},
    {"cycle", cycle_method},
    {"isnumeric", isdigit_method},
}};

}  // namespace

// ---- shared with the filters ----

SourcedText strip(const SourcedText& text, const SourcedText* characters, StripSides sides) {
  const std::string_view bytes = text.text();
  size_t begin = 0;
  size_t end = bytes.size();
  if (sides != StripSides::right) {
    while (begin < end) {
      const Utf8Step step = utf8_step(bytes.substr(begin));
      if (!is_stripped(step.code_point, characters)) break;
      begin += static_cast<size_t>(step.length);
    }
  }
  if (sides != StripSides::left) {
    while (end > begin) {
      size_t last = end - 1;
      while (last > begin && (static_cast<unsigned char>(bytes[last]) & 0xC0U) == 0x80U) --last;
      if (!is_stripped(code_point_at(bytes, last), characters)) break;
      end = last;
    }
  }
  return text.substr(begin, end - begin);
}

SourcedText change_case(const SourcedText& text, LetterCase letter_case) {
  SourcedText result;
  bool word_begins = true;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(std::string_view(text.text()).substr(at));
    const auto c = static_cast<utf8proc_int32_t>(step.code_point);
    const bool up =
        letter_case == LetterCase::upper || (letter_case != LetterCase::lower && word_begins);
    std::string character;
    append_utf8(character, static_cast<char32_t>(up ? utf8proc_toupper(c) : utf8proc_tolower(c)));
    result.append(character, text.source_at(at));
    if (letter_case == LetterCase::title) {
      const auto category = utf8proc_category(c);
      word_begins = category < UTF8PROC_CATEGORY_LU || category > UTF8PROC_CATEGORY_LO;
    } else {
      word_begins = false;
    }
    at += static_cast<size_t>(step.length);
  }
  return result;
}

SourcedText replace(Evaluation& evaluation, const SourcedText& text, const SourcedText& from,
                    const SourcedText& to, int64_t limit) {
  if (from.size() == 0) evaluation.unsupported("replacing an empty string");
  SourcedText result;
  size_t begin = 0;
  while (limit != 0) {
    const size_t at = text.text().find(from.text(), begin);
    if (at == std::string::npos) break;
    evaluation.charge(1 + to.size() / 8);
    result.append(text.substr(begin, at - begin));
    result.append(to);
    begin = at + from.size();
    --limit;
  }
  result.append(text.substr(begin));
  return result;
}

Value dict_items(Evaluation& evaluation, const Dict& dict) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : dict.members) {
    pairs.push_back(evaluation.list({evaluation.string(key), value}));
  }
  return evaluation.list(std::move(pairs));
}

Builtin find_method(std::string_view name) {
  const auto* found = std::find_if(kMethods.begin(), kMethods.end(),
                                   [&](const NamedMethod& method) { return method.name == name; });
  return found == kMethods.end() ? nullptr : found->function;
}

CodePoints::CodePoints(std::string_view text) {
  const auto starts = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; };
  count_ = std::count_if(text.begin(), text.end(), starts);
  if (static_cast<size_t>(count_) == text.size()) return;
  offsets_.reserve(static_cast<size_t>(count_) + 1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (starts(text[i])) offsets_.push_back(i);
  }
  offsets_.push_back(text.size());
}

std::vector<int64_t> slice_indices(const SliceBounds& bounds, int64_t size) {
  const int64_t step = bounds.step.value_or(1);
  const bool forward = step > 0;
  const int64_t lowest = forward ? 0 : -1;
  const int64_t highest = forward ? size : size - 1;
  const auto place = [&](std::optional<int64_t> bound, int64_t otherwise) {
    if (!bound) return otherwise;
    return std::clamp(*bound < 0 ? std::max(*bound, -size - 1) + size : *bound, lowest, highest);
  };
  const int64_t start = place(bounds.start, forward ? lowest : highest);
  const int64_t stop = place(bounds.stop, forward ? highest : lowest);
  std::vector<int64_t> indices;
  // A step beyond the size would overflow the counter and takes one element at most anyway.
  const int64_t stride = std::clamp(step, -size - 1, size + 1);
  for (int64_t i = start; forward ? i < stop : i > stop; i += stride) indices.push_back(i);
  return indices;
}

SourcedText slice_text(const SourcedText& text, const SliceBounds& bounds) {
  const CodePoints code_points(text.text());
  const std::vector<int64_t> indices = slice_indices(bounds, code_points.count());
  if (indices.empty()) return {};
  if (bounds.step.value_or(1) == 1) {
    const size_t begin = code_points.offset(indices.front());
    return text.substr(begin, code_points.offset(indices.back() + 1) - begin);
  }
  SourcedText result;
  for (const int64_t i : indices) {
    const size_t begin = code_points.offset(i);
    result.append(text.substr(begin, code_points.offset(i + 1) - begin));
  }
  return result;
}

}  // namespace glimpse::jinja
