#include "runtime/page_keys.h"

#include <cstring>
#include <span>
#include <vector>

namespace glimpse {
namespace {

template <typename T>
void append(std::vector<std::byte>& bytes, const T& value) {
  const size_t size = bytes.size();
  bytes.resize(size + sizeof(T));
  std::memcpy(bytes.data() + size, &value, sizeof(T));
}

PageKey key_of_page(const Sequence& sequence, int64_t page, const PageKey& previous) {
  const int64_t first = page * kKvPageTokens;
  const int64_t end = first + kKvPageTokens;
  std::vector<std::byte> bytes;
  append(bytes, previous);
  for (int64_t i = first; i < end; ++i) append(bytes, sequence.tokens[static_cast<size_t>(i)]);
  for (const SequencePicture& picture : sequence.pictures) {
    if (picture.first >= end || picture.end() <= first) continue;
    append(bytes, picture.first);
    append(bytes, picture.content);
  }
  return sha256(bytes);
}

}  // namespace

void extend_page_keys(Sequence& sequence) {
  const int64_t num_full = sequence.num_tokens() / kKvPageTokens;
  while (static_cast<int64_t>(sequence.page_keys.size()) < num_full) {
    const PageKey previous = sequence.page_keys.empty() ? PageKey{} : sequence.page_keys.back();
    const auto page = static_cast<int64_t>(sequence.page_keys.size());
    sequence.page_keys.push_back(key_of_page(sequence, page, previous));
  }
}

}  // namespace glimpse
