// simdjson reads the document in one pass of about a gigabyte a second. Merges are looked up by the
// ids of their two halves and are never concatenated where the vocabulary lists their results in
// the order of the merges, as trained vocabularies do.
#include "text/tokenizer_file.h"

#include <array>
#include <optional>

#include <fmt/format.h>
#include <simdjson.h>

#include "base/check.h"
#include "text/unicode.h"

namespace glimpse {
namespace {

namespace dom = simdjson::dom;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorCode::unsupported, fmt::format("tokenizer.json: {} is not supported", what),
              "Glimpse reads the byte-level BPE tokenizers of the Qwen family");
}

[[noreturn]] void malformed(const std::string& what) {
  throw Error(ErrorCode::bad_model, fmt::format("tokenizer.json: {}", what));
}

/// nullopt when the member is absent or null.
std::optional<dom::element> member(dom::object object, std::string_view key) {
  dom::element value;
  if (object.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

template <typename T>
T as(dom::element value, std::string_view what) {
  T result{};
  if (value.get(result) != simdjson::SUCCESS) malformed(fmt::format("{} has the wrong type", what));
  return result;
}

template <typename T>
T required(dom::object object, std::string_view key) {
  const auto value = member(object, key);
  if (!value) malformed(fmt::format("\"{}\" is missing", key));
  return as<T>(*value, key);
}

bool flag(dom::object object, std::string_view key, bool otherwise) {
  const auto value = member(object, key);
  return value ? as<bool>(*value, key) : otherwise;
}

/// Refuses an option that is on; absent and null count as off.
void expect_off(dom::object object, std::string_view key, std::string_view where) {
  const auto value = member(object, key);
  if (!value) return;
  bool on = true;
  std::string_view text;
  if (value->get(text) == simdjson::SUCCESS) {
    on = !text.empty();
  } else if (value->get(on) != simdjson::SUCCESS) {
    on = true;
  }
  if (on) refuse(fmt::format("\"{}\" of the {}", key, where));
}

/// A section that may be one step or a "Sequence" of them, as a list.
std::vector<dom::object> steps(dom::element section, std::string_view list_key) {
  const auto object = as<dom::object>(section, list_key);
  if (required<std::string_view>(object, "type") != "Sequence") return {object};
  std::vector<dom::object> result;
  for (const dom::element step : required<dom::array>(object, list_key)) {
    result.push_back(as<dom::object>(step, list_key));
  }
  return result;
}

bool read_normalizer(dom::object root) {
  const auto section = member(root, "normalizer");
  if (!section) return false;
  bool nfc = false;
  for (const dom::object step : steps(*section, "normalizers")) {
    const auto type = required<std::string_view>(step, "type");
    if (type != "NFC") refuse(fmt::format("the normalizer \"{}\"", type));
    nfc = true;
  }
  return nfc;
}

std::string read_split(dom::object step) {
  if (required<std::string_view>(step, "behavior") != "Isolated") {
    refuse(fmt::format("the split behavior \"{}\"", required<std::string_view>(step, "behavior")));
  }
  expect_off(step, "invert", "split");
  const auto pattern = required<dom::object>(step, "pattern");
  const auto regex = member(pattern, "Regex");
  if (!regex) refuse("a split pattern that is no \"Regex\"");
  return std::string(as<std::string_view>(*regex, "Regex"));
}

std::string read_pre_tokenizer(dom::object root) {
  const auto section = member(root, "pre_tokenizer");
  if (!section) refuse("a missing pre_tokenizer");
  std::string regex;
  bool byte_level = false;
  for (const dom::object step : steps(*section, "pretokenizers")) {
    const auto type = required<std::string_view>(step, "type");
    if (type == "Split" && regex.empty() && !byte_level) {
      regex = read_split(step);
    } else if (type == "ByteLevel" && !byte_level) {
      if (flag(step, "add_prefix_space", true)) refuse("\"add_prefix_space\" of ByteLevel");
      if (flag(step, "use_regex", true)) refuse("\"use_regex\" of ByteLevel");
      byte_level = true;
    } else {
      refuse(fmt::format("the pre_tokenizer \"{}\" at this place", type));
    }
  }
  if (!byte_level) refuse("a pre_tokenizer without ByteLevel");
  if (regex.empty()) refuse("a pre_tokenizer without a Split pattern");
  return regex;
}

void check_outer_sections(dom::object root) {
  for (const std::string_view key : {"post_processor", "decoder"}) {
    const auto section = member(root, key);
    if (!section) continue;
    const auto type = required<std::string_view>(as<dom::object>(*section, key), "type");
    if (type != "ByteLevel") refuse(fmt::format("the {} \"{}\"", key, type));
  }
  for (const std::string_view key : {"truncation", "padding"}) {
    if (member(root, key)) refuse(fmt::format("\"{}\"", key));
  }
}

TokenId read_id(dom::element value, std::string_view text) {
  const auto id = as<int64_t>(value, "a token id");
  if (id < 0 || id > Vocabulary::kMaxId) {
    malformed(fmt::format("token \"{}\" has id {}, beyond 0..{}", text, id, Vocabulary::kMaxId));
  }
  return static_cast<TokenId>(id);
}

void add_to(Vocabulary& vocabulary, std::string_view bytes, TokenId id, std::string_view spelling) {
  switch (vocabulary.add(bytes, id)) {
    case Vocabulary::Added::ok:
      return;
    case Vocabulary::Added::duplicate_id:
      malformed(fmt::format("two tokens have id {}", id));
    case Vocabulary::Added::duplicate_text:
      malformed(fmt::format("token \"{}\" is listed twice", spelling));
  }
}

void read_vocabulary(dom::object entries, Vocabulary& vocabulary) {
  constexpr size_t kUsualBytes = 8;  // per entry
  vocabulary.reserve(entries.size(), entries.size() * kUsualBytes);
  std::string bytes;
  for (const auto [spelling, value] : entries) {
    bytes.clear();
    if (spelling.empty()) malformed("a token is empty");
    if (!append_byte_level(spelling, bytes)) {
      refuse(fmt::format("token \"{}\", which is not spelt in the byte-level alphabet,", spelling));
    }
    add_to(vocabulary, bytes, read_id(value, spelling), spelling);
  }
}

struct MergeHalves {
  std::string_view left;
  std::string_view right;
};

/// ["a", "b"] or "a b".
MergeHalves halves(dom::element merge) {
  std::string_view text;
  if (merge.get(text) == simdjson::SUCCESS) {
    const size_t space = text.find(' ');
    if (space == std::string_view::npos) malformed(fmt::format("merge \"{}\" has no space", text));
    return {text.substr(0, space), text.substr(space + 1)};
  }
  MergeHalves result;
  dom::array pair;
  if (merge.get(pair) == simdjson::SUCCESS && pair.size() == 2) {
    auto half = pair.begin();
    if ((*half).get(result.left) == simdjson::SUCCESS &&
        (*++half).get(result.right) == simdjson::SUCCESS) {
      return result;
    }
  }
  malformed("a merge is neither \"a b\" nor [\"a\", \"b\"]");
}

/// Resolves merges a batch at a time.
class MergeReader {
 public:
  MergeReader(const Vocabulary& vocabulary, MergeTable& merges)
      : vocabulary_(vocabulary), merges_(merges) {}

  void push(MergeHalves spelt) {
    Pending& pending = pending_[count_++];
    pending = {spelt, bytes_.size(), 0, 0};
    bool ok = append_byte_level(spelt.left, bytes_);
    pending.middle = bytes_.size();
    ok = append_byte_level(spelt.right, bytes_) && ok;
    pending.end = bytes_.size();
    if (!ok) fail(spelt);
    if (count_ == pending_.size()) flush();
  }

  void flush() {
    std::array<std::string_view, Vocabulary::kBatch> texts;
    std::array<TokenId, Vocabulary::kBatch> ids{};
    const std::string_view bytes = bytes_;
    for (size_t i = 0; i < count_; ++i) {
      const Pending& merge = pending_[i];
      texts[2 * i] = bytes.substr(merge.begin, merge.middle - merge.begin);
      texts[2 * i + 1] = bytes.substr(merge.middle, merge.end - merge.middle);
    }
    vocabulary_.find_batch(std::span(texts).first(2 * count_), std::span(ids).first(2 * count_));
    for (size_t i = 0; i < count_; ++i) merges_.prefetch(ids[2 * i], ids[2 * i + 1]);
    for (size_t i = 0; i < count_; ++i) {
      const Pending& merge = pending_[i];
      const std::string_view whole = bytes.substr(merge.begin, merge.end - merge.begin);
      TokenId result = guess_;
      if (whole.empty() || vocabulary_.bytes(result) != whole) result = vocabulary_.find(whole);
      if (ids[2 * i] < 0 || ids[2 * i + 1] < 0 || result < 0) fail(merge.spelt);
      merges_.add(ids[2 * i], ids[2 * i + 1], result);
      guess_ = result + 1;
    }
    count_ = 0;
    bytes_.clear();
  }

 private:
  struct Pending {
    MergeHalves spelt;
    size_t begin = 0;  // in bytes_
    size_t middle = 0;
    size_t end = 0;
  };

  [[noreturn]] static void fail(MergeHalves spelt) {
    malformed(fmt::format("merge \"{} {}\" names a token that the vocabulary lacks", spelt.left,
                          spelt.right));
  }

  const Vocabulary& vocabulary_;
  MergeTable& merges_;
  std::array<Pending, Vocabulary::kBatch / 2> pending_;
  size_t count_ = 0;
  std::string bytes_;
  TokenId guess_ = -1;  // the last result plus one: nearly always the next result
};

MergeTable read_merges(dom::array list, const Vocabulary& vocabulary) {
  if (list.size() > MergeTable::kMaxMerges) {
    refuse(fmt::format("a list of more than {} merges", MergeTable::kMaxMerges));
  }
  if (list.size() > 0 && vocabulary.size() == 0) malformed("merges without a vocabulary");
  MergeTable merges(list.size());
  MergeReader reader(vocabulary, merges);
  for (const dom::element merge : list) reader.push(halves(merge));
  reader.flush();
  return merges;
}

void read_model(dom::object root, TokenizerFile& file) {
  const auto model = required<dom::object>(root, "model");
  const auto type = member(model, "type");
  if (type && as<std::string_view>(*type, "type") != "BPE") {
    refuse(fmt::format("the model \"{}\"", as<std::string_view>(*type, "type")));
  }
  for (const std::string_view key :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
        "byte_fallback", "ignore_merges"}) {
    expect_off(model, key, "BPE model");
  }
  read_vocabulary(required<dom::object>(model, "vocab"), file.vocabulary);
  file.merges = read_merges(required<dom::array>(model, "merges"), file.vocabulary);
}

void read_added_tokens(dom::object root, TokenizerFile& file) {
  const auto list = member(root, "added_tokens");
  if (!list) return;
  for (const dom::element element : as<dom::array>(*list, "added_tokens")) {
    const auto token = as<dom::object>(element, "an added token");
    const std::string text(required<std::string_view>(token, "content"));
    // One byte would be met in ordinary text, where added tokens must not appear.
    if (text.size() < 2)
      refuse(fmt::format("the added token \"{}\" of {} bytes", text, text.size()));
    for (const std::string_view key : {"single_word", "lstrip", "rstrip"}) {
      expect_off(token, key, fmt::format("added token \"{}\"", text));
    }
    if (file.normalize_nfc && !is_surely_nfc(text)) {
      refuse(fmt::format("the added token \"{}\", which normalisation might change,", text));
    }
    const auto id_value = member(token, "id");
    if (!id_value) malformed(fmt::format("added token \"{}\" has no id", text));
    const TokenId id = read_id(*id_value, text);
    if (file.vocabulary.bytes(id) != text) add_to(file.vocabulary, text, id, text);
    file.added_tokens.push_back({text, id, flag(token, "special", false)});
  }
}

/// The byte that each character of the alphabet stands for: 188 printable bytes are themselves, the
/// others, in order, are U+0100 and up.
constexpr int kAlphabetEnd = 0x144;
constexpr std::array<int16_t, kAlphabetEnd> make_alphabet() {
  std::array<int16_t, kAlphabetEnd> result{};
  for (int16_t& byte : result) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    result[static_cast<size_t>(itself ? byte : next++)] = static_cast<int16_t>(byte);
  }
  return result;
}
constexpr std::array<int16_t, kAlphabetEnd> kAlphabet = make_alphabet();

}  // namespace

bool append_byte_level(std::string_view spelling, std::string& bytes) {
  for (size_t i = 0; i < spelling.size(); ++i) {
    unsigned code = static_cast<unsigned char>(spelling[i]);
    if (code >= 0x80) {  // valid UTF-8; the alphabet needs two bytes at most
      if (code >= 0xE0 || i + 1 >= spelling.size()) return false;
      code = ((code & 0x1FU) << 6) | (static_cast<unsigned char>(spelling[++i]) & 0x3FU);
    }
    if (code >= kAlphabet.size() || kAlphabet[code] < 0) return false;
    bytes.push_back(static_cast<char>(kAlphabet[code]));
  }
  return true;
}

TokenizerFile read_tokenizer_file(std::string_view json, size_t readable_beyond) {
  dom::parser parser;
  dom::object root;
  const bool must_copy = readable_beyond < simdjson::SIMDJSON_PADDING;
  const auto error = parser.parse(json.data(), json.size(), must_copy).get(root);
  if (error != simdjson::SUCCESS) {
    malformed(fmt::format("not a JSON object: {}", simdjson::error_message(error)));
  }
  TokenizerFile file;
  check_outer_sections(root);
  file.normalize_nfc = read_normalizer(root);
  file.split_regex = read_pre_tokenizer(root);
  read_model(root, file);
  read_added_tokens(root, file);
  return file;
}

}  // namespace glimpse
