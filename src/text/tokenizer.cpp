#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <optional>

#include <fmt/format.h>

#include "base/check.h"
#include "base/mapped_file.h"
#include "text/split_pattern.h"
#include "text/tokenizer_file.h"
#include "text/unicode.h"

namespace glimpse {
namespace {

/// Added tokens by their first byte, longest first.
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) {
      const auto first = [](const AddedToken& t) { return static_cast<unsigned char>(t.text[0]); };
      if (first(a) != first(b)) return first(a) < first(b);
      return a.text.size() > b.text.size();
    });
    for (size_t i = tokens_.size(); i-- > 0;) {
      const auto byte = static_cast<unsigned char>(tokens_[i].text[0]);
      begin_[byte] = static_cast<uint32_t>(i);
      if (end_[byte] == 0) end_[byte] = static_cast<uint32_t>(i) + 1;
    }
  }

  /// The longest token that `text` begins with, or nullptr.
  [[nodiscard]] const AddedToken* match(std::string_view text) const {
    const auto byte = static_cast<unsigned char>(text[0]);
    for (uint32_t i = begin_[byte]; i < end_[byte]; ++i) {
      if (text.substr(0, tokens_[i].text.size()) == tokens_[i].text) return &tokens_[i];
    }
    return nullptr;
  }
  [[nodiscard]] const std::vector<AddedToken>& all() const { return tokens_; }

 private:
  std::vector<AddedToken> tokens_;
  std::array<uint32_t, 256> begin_{};  // tokens_[begin_[b], end_[b]) start with byte b
  std::array<uint32_t, 256> end_{};
};

enum class AddedKind : uint8_t { no, ordinary, special };

}  // namespace

struct Tokenizer::Data {
  Vocabulary vocabulary;
  MergeTable merges;
  AddedTokens added;
  SplitPattern split;
  bool normalize;
  std::array<TokenId, 256> byte_ids{};  // -1 where the vocabulary lacks a byte
  std::vector<AddedKind> added_kinds;   // [vocabulary size]

  explicit Data(TokenizerFile file)
      : vocabulary(std::move(file.vocabulary)),
        merges(std::move(file.merges)),
        added(std::move(file.added_tokens)),
        split(file.split_regex),
        normalize(file.normalize_nfc),
        added_kinds(static_cast<size_t>(vocabulary.size()), AddedKind::no) {
    for (size_t byte = 0; byte < byte_ids.size(); ++byte) {
      const char text = static_cast<char>(byte);
      byte_ids[byte] = vocabulary.find({&text, 1});
    }
    for (const AddedToken& token : added.all()) {
      added_kinds[static_cast<size_t>(token.id)] =
          token.special ? AddedKind::special : AddedKind::ordinary;
    }
  }

  [[nodiscard]] AddedKind added_kind(TokenId id) const {
    if (id < 0 || id >= vocabulary.size()) return AddedKind::no;
    return added_kinds[static_cast<size_t>(id)];
  }

  void encode_piece(std::string_view piece, std::vector<TokenId>& symbols,
                    std::vector<TokenId>& ids) const {
    symbols.clear();
    for (const char c : piece) {
      // A byte without a token is dropped, as the format's own implementation does without "unk".
      const TokenId id = byte_ids[static_cast<unsigned char>(c)];
      if (id >= 0) symbols.push_back(id);
    }
    merge_symbols(merges, symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
  }

  /// Text without added tokens.
  void encode_ordinary(std::string_view text, std::vector<TokenId>& ids) const {
    if (text.empty()) return;
    std::string changed;
    if (!is_valid_utf8(text)) {
      append_replacing_invalid(text, Utf8Tail::replace_incomplete, changed);
      text = changed;
    }
    if (normalize && !is_surely_nfc(text)) {
      changed = normalize_nfc(text);
      text = changed;
    }
    std::vector<TokenId> symbols;
    split.for_each_piece(text, [&](std::string_view piece) { encode_piece(piece, symbols, ids); });
  }
};

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer::Tokenizer(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  // The last page of a mapping can be read to its end, whatever the system's page size is.
  constexpr size_t kSmallestPage = 4096;
  const size_t readable_beyond = (kSmallestPage - bytes.size() % kSmallestPage) % kSmallestPage;
  data_ = std::make_unique<Data>(read_tokenizer_file(
      {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, readable_beyond));
}

Tokenizer Tokenizer::from_json(std::string_view json) {
  Tokenizer tokenizer;
  tokenizer.data_ = std::make_unique<Data>(read_tokenizer_file(json, 0));
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
  const TextPiece piece{std::string(text), true};
  return encode(std::span(&piece, 1));
}

std::vector<TokenId> Tokenizer::encode(std::span<const TextPiece> pieces) const {
  std::string text;
  // Ends of the stretches of `text` that may hold added tokens, by where they begin.
  struct Stretch {
    size_t begin;
    size_t end;
  };
  std::vector<Stretch> open;
  for (const TextPiece& piece : pieces) {
    const size_t begin = text.size();
    text += piece.text;
    if (!piece.may_hold_special_tokens || piece.text.empty()) continue;
    if (!open.empty() && open.back().end == begin) {
      open.back().end = text.size();
    } else {
      open.push_back({begin, text.size()});
    }
  }
  std::vector<TokenId> ids;
  size_t ordinary_begin = 0;
  for (const Stretch stretch : open) {
    for (size_t at = stretch.begin; at < stretch.end;) {
      const auto rest = std::string_view(text).substr(at, stretch.end - at);
      const AddedToken* token = data_->added.match(rest);
      if (token == nullptr) {
        ++at;
        continue;
      }
      data_->encode_ordinary(std::string_view(text).substr(ordinary_begin, at - ordinary_begin),
                             ids);
      ids.push_back(token->id);
      at += token->text.size();
      ordinary_begin = at;
    }
  }
  data_->encode_ordinary(std::string_view(text).substr(ordinary_begin), ids);
  return ids;
}

std::string Tokenizer::decode_bytes(std::span<const TokenId> ids) const {
  std::string bytes;
  for (const TokenId id : ids) bytes += token_bytes(id);
  return bytes;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  std::string bytes;
  for (const TokenId id : ids) {
    if (!skip_special || !is_special(id)) bytes += token_bytes(id);
  }
  std::string text;
  append_replacing_invalid(bytes, Utf8Tail::replace_incomplete, text);
  return text;
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  return data_->vocabulary.bytes(id);
}

bool Tokenizer::is_special(TokenId id) const {
  return data_->added_kind(id) == AddedKind::special;
}

bool Tokenizer::is_added(TokenId id) const {
  return data_->added_kind(id) != AddedKind::no;
}

TokenId Tokenizer::find(std::string_view token) const {
  if (const TokenId id = data_->vocabulary.find(token); is_added(id)) return id;
  std::string bytes;
  if (!append_byte_level(token, bytes)) return -1;
  const TokenId id = data_->vocabulary.find(bytes);
  return is_added(id) ? -1 : id;
}

TokenId Tokenizer::vocabulary_size() const {
  return data_->vocabulary.size();
}

}  // namespace glimpse
