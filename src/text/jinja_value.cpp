#include "text/jinja_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <fmt/format.h>
#include <utf8proc.h>

#include "text/unicode.h"

namespace glimpse::jinja {
namespace {

constexpr int kMaxValueDepth = 1000;

constexpr size_t kMaxWeight = size_t{1} << 28;

/// Adds what one more entry brings to a list or dict.
template <typename Container>
void account(Container& container, const Value& entry, size_t key_size) {
  container.depth = std::max(container.depth, entry.depth() + 1);
  container.weight += key_size + entry.weight();
  if (container.depth > kMaxValueDepth || container.weight > kMaxWeight) {
    throw Error(ErrorCode::unsupported,
                fmt::format("the chat template builds a list of more than {} levels or {} bytes",
                            kMaxValueDepth, kMaxWeight));
  }
}

/// Python's repr of a float: the shortest digits that read back the same.
std::string float_text(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x < 0 ? "-inf" : "inf";
  std::array<char, 64> buffer{};
  const double magnitude = std::fabs(x);
  const bool fixed = magnitude == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), x,
                                 fixed ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer.data(), end.ptr);
  if (fixed && text.find('.') == std::string::npos) text += ".0";
  return text;
}

bool is_printable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

void append_escaped(std::string& out, char32_t c) {
  if (c == '\n') {
    out += "\\n";
  } else if (c == '\r') {
    out += "\\r";
  } else if (c == '\t') {
    out += "\\t";
  } else if (c <= 0xFF) {
    out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
  } else if (c <= 0xFFFF) {
    out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
  } else {
    out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
  }
}

/// Python's repr of a string.
void append_repr(const SourcedText& string, SourcedText& out) {
  const std::string& text = string.text();
  const bool double_quotes =
      text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = double_quotes ? '"' : '\'';
  const TextSource overall = string.overall_source();
  out.append({&quote, 1}, overall);
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(std::string_view(text).substr(at));
    const auto length = static_cast<size_t>(step.length);
    std::string shown;
    if (step.code_point == static_cast<unsigned char>(quote) || step.code_point == '\\') {
      shown = {'\\', text[at]};
    } else if (is_printable(step.code_point)) {
      shown = text.substr(at, length);
    } else {
      append_escaped(shown, step.code_point);
    }
    out.append(shown, string.source_at(at));
    at += length;
  }
  out.append({&quote, 1}, overall);
}

void append_value(const Value& value, SourcedText& out);

void append_element(const Value& value, SourcedText& out) {
  if (const SourcedText* text = value.text()) {
    append_repr(*text, out);
  } else {
    append_value(value, out);
  }
}

void append_members(const Dict& dict, SourcedText& out) {
  const char* separator = "{";
  for (const auto& [key, member] : dict.members) {
    out.append(separator, TextSource::conversation);
    append_repr(key, out);
    out.append(": ", TextSource::conversation);
    append_element(member, out);
    separator = ", ";
  }
  out.append(dict.members.empty() ? "{}" : "}", TextSource::conversation);
}

void append_value(const Value& value, SourcedText& out) {
  const TextSource source = value.scalar_source();
  if (value.is<None>()) {
    out.append("None", source);
  } else if (const bool* b = value.get<bool>()) {
    out.append(*b ? "True" : "False", source);
  } else if (const int64_t* i = value.get<int64_t>()) {
    out.append(std::to_string(*i), source);
  } else if (const double* d = value.get<double>()) {
    out.append(float_text(*d), source);
  } else if (const SourcedText* text = value.text()) {
    out.append(*text);
  } else if (const auto* items = value.items()) {
    out.append("[", TextSource::conversation);
    for (size_t at = 0; at < items->size(); ++at) {
      if (at > 0) out.append(", ", TextSource::conversation);
      append_element((*items)[at], out);
    }
    out.append("]", TextSource::conversation);
  } else if (const Dict* dict = value.members()) {
    append_members(*dict, out);
  } else if (!value.is<Undefined>()) {
    throw Error(ErrorCode::unsupported,
                fmt::format("the chat template prints a {}", value.type_name()));
  }
}

void append_json_string(std::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

/// One value at a level of indentation.
class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, std::string& out) : style_(style), out_(out) {}

  bool write(const Value& value, int level) {
    if (value.is<None>()) {
      out_ += "null";
    } else if (const bool* b = value.get<bool>()) {
      out_ += *b ? "true" : "false";
    } else if (const double* d = value.get<double>()) {
      out_ += std::isnan(*d)   ? "NaN"
              : std::isinf(*d) ? (*d < 0 ? "-Infinity" : "Infinity")
                               : float_text(*d);
    } else if (value.is<int64_t>()) {
      out_ += std::to_string(*value.get<int64_t>());
    } else if (const SourcedText* text = value.text()) {
      append_json_string(text->text(), out_);
    } else if (const auto* items = value.items()) {
      return write_items(*items, level);
    } else if (const Dict* dict = value.members()) {
      return write_members(*dict, level);
    } else {
      return false;
    }
    return true;
  }

 private:
  void separate(bool first, int level) {
    if (!first) {
      std::string_view separator = style_.item_separator;
      // With an indent, json.dumps' default separator has no space before the line's end.
      if (style_.indent >= 0 && separator == ", ") separator = ",";
      out_ += separator;
    }
    new_line(level);
  }
  void new_line(int level) {
    if (style_.indent < 0) return;
    out_ += '\n';
    out_.append(static_cast<size_t>(style_.indent) * static_cast<size_t>(level), ' ');
  }

  bool write_items(const std::vector<Value>& items, int level) {
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      separate(i == 0, level + 1);
      if (!write(items[i], level + 1)) return false;
    }
    if (!items.empty()) new_line(level);
    out_ += ']';
    return true;
  }

  bool write_members(const Dict& dict, int level) {
    std::vector<const std::pair<SourcedText, Value>*> members;
    for (const auto& member : dict.members) members.push_back(&member);
    if (style_.sort_keys) {
      std::sort(members.begin(), members.end(),
                [](const auto* a, const auto* b) { return a->first.text() < b->first.text(); });
    }
    out_ += '{';
    for (size_t i = 0; i < members.size(); ++i) {
      separate(i == 0, level + 1);
      append_json_string(members[i]->first.text(), out_);
      out_ += style_.key_separator;
      if (!write(members[i]->second, level + 1)) return false;
    }
    if (!members.empty()) new_line(level);
    out_ += '}';
    return true;
  }

  const JsonStyle& style_;
  std::string& out_;
};

}  // namespace

Value Value::string(SourcedText text) {
  return {Held(std::make_shared<const SourcedText>(std::move(text)))};
}

Value Value::string(std::string text, TextSource source) {
  return string(SourcedText(std::move(text), source));
}

Value Value::list(std::vector<Value> items) {
  List list{std::move(items)};
  for (const Value& item : list.items) account(list, item, 0);
  return {Held(std::make_shared<const List>(std::move(list)))};
}

Value Value::dict(std::vector<std::pair<SourcedText, Value>> members) {
  Dict dict{std::move(members)};
  for (const auto& [key, member] : dict.members) account(dict, member, key.size());
  return {Held(std::make_shared<const Dict>(std::move(dict)))};
}

Value Value::from_json(const Json& json, TextSource source) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return {Held(json.get<bool>()), source};
    case Json::value_t::number_integer:
      return {Held(json.get<int64_t>()), source};
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > INT64_MAX) return {Held(json.get<double>()), source};
      return {Held(json.get<int64_t>()), source};
    case Json::value_t::number_float:
      return {Held(json.get<double>()), source};
    case Json::value_t::string:
      return string(json.get<std::string>(), source);
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) items.push_back(from_json(item, source));
      return list(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<SourcedText, Value>> members;
      for (const auto& [key, member] : json.items()) {
        members.emplace_back(SourcedText(key, source), from_json(member, source));
      }
      return dict(std::move(members));
    }
    default:
      return {Held(None{}), source};
  }
}

const std::vector<Value>* Value::items() const {
  const ListRef* list = get<ListRef>();
  return list == nullptr ? nullptr : &(*list)->items;
}

const Dict* Value::members() const {
  const DictRef* dict = get<DictRef>();
  return dict == nullptr ? nullptr : dict->get();
}

int Value::depth() const {
  if (const ListRef* list = get<ListRef>()) return (*list)->depth;
  if (const DictRef* dict = get<DictRef>()) return (*dict)->depth;
  return 0;
}

size_t Value::weight() const {
  if (const SourcedText* string = text()) return 1 + string->size();
  if (const ListRef* list = get<ListRef>()) return (*list)->weight;
  if (const DictRef* dict = get<DictRef>()) return (*dict)->weight;
  return 1;
}

bool Value::truthy() const {
  if (is<Undefined>() || is<None>()) return false;
  if (is_number()) return as_double(*this) != 0;
  if (const SourcedText* string = text()) return string->size() > 0;
  if (const auto* list = items()) return !list->empty();
  if (const Dict* dict = members()) return !dict->members.empty();
  return true;
}

std::string_view Value::type_name() const {
  constexpr std::array<std::string_view, std::variant_size_v<Held>> kNames = {
      "undefined value", "None", "truth value", "integer",   "float",
      "string",          "list", "dict",        "namespace", "macro"};
  return kNames[held_.index()];
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : members) {
    if (name.text() == key) return &value;
  }
  return nullptr;
}

void Dict::set(SourcedText key, Value value) {
  for (auto& [name, member] : members) {
    if (name.text() == key.text()) {
      member = std::move(value);
      return;
    }
  }
  members.emplace_back(std::move(key), std::move(value));
}

double as_double(const Value& number) {
  if (const bool* b = number.get<bool>()) return *b ? 1 : 0;
  if (const int64_t* i = number.get<int64_t>()) return static_cast<double>(*i);
  const double* d = number.get<double>();
  return d == nullptr ? 0 : *d;
}

bool as_integer(const Value& value, int64_t& result) {
  if (const bool* b = value.get<bool>()) {
    result = *b ? 1 : 0;
  } else if (const int64_t* i = value.get<int64_t>()) {
    result = *i;
  } else {
    return false;
  }
  return true;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    int64_t x = 0;
    int64_t y = 0;
    if (as_integer(a, x) && as_integer(b, y)) return x == y;
    return as_double(a) == as_double(b);
  }
  if (a.text() != nullptr && b.text() != nullptr) return a.text()->text() == b.text()->text();
  if (a.items() != nullptr && b.items() != nullptr) {
    return std::equal(a.items()->begin(), a.items()->end(), b.items()->begin(), b.items()->end(),
                      equal);
  }
  if (a.members() != nullptr && b.members() != nullptr) {
    const Dict& y = *b.members();
    if (a.members()->members.size() != y.members.size()) return false;
    return std::all_of(a.members()->members.begin(), a.members()->members.end(),
                       [&](const auto& member) {
                         const Value* other = y.find(member.first.text());
                         return other != nullptr && equal(member.second, *other);
                       });
  }
  return (a.is<None>() && b.is<None>()) || (a.is<Undefined>() && b.is<Undefined>());
}

SourcedText to_text(const Value& value) {
  SourcedText out;
  append_value(value, out);
  return out;
}

bool to_json(const Value& value, const JsonStyle& style, std::string& out) {
  return JsonWriter(style, out).write(value, 0);
}

}  // namespace glimpse::jinja
