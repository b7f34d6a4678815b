#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "base/json.h"

namespace glimpse {
namespace {

// std::map keys: the ordered object of base/json.h looks names up one by one, too slow for a header
// of thousands.
using HeaderJson = nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100 << 20;  // the format's own limit
constexpr int kMaxDepth = 8;
constexpr size_t kMaxDimensions = 8;

struct DTypeName {
  std::string_view name;
  DType dtype;
};
constexpr DTypeName kDTypeNames[] = {
    {"F32", DType::f32}, {"F16", DType::f16}, {"BF16", DType::bf16}, {"F8_E4M3", DType::f8_e4m3},
    {"I32", DType::i32}, {"I64", DType::i64}, {"U8", DType::u8},     {"BOOL", DType::u8},
    {"I8", DType::u8},   {"U16", DType::u16}, {"U32", DType::u32},
};

class HeaderParser {
 public:
  HeaderParser(std::span<const std::byte> file, std::string_view file_name)
      : file_(file), file_name_(file_name) {}

  std::vector<StoredTensor> parse() {
    const std::string_view header = header_text();
    data_ = file_.subspan(kLengthBytes + header.size());
    const HeaderJson json = parse_header(header);
    if (!json.is_object()) fail("the header is not a JSON object");
    std::vector<StoredTensor> tensors;
    for (const auto& [name, entry] : json.items()) {
      if (name != "__metadata__") tensors.push_back(read_entry(name, entry));
    }
    check_overlap(tensors);
    return tensors;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::bad_model, fmt::format("{}: {}", file_name_, what),
                "the file is damaged or incomplete: download it again");
  }
  [[noreturn]] void fail(const std::string& name, std::string_view what) const {
    fail(fmt::format("tensor '{}' {}", name, what));
  }

  [[nodiscard]] std::string_view header_text() const {
    if (file_.size() < kLengthBytes) {
      fail(fmt::format("the file is truncated: {} bytes", file_.size()));
    }
    uint64_t length = 0;
    std::memcpy(&length, file_.data(), kLengthBytes);
    if (length > kMaxHeaderBytes) {
      fail(fmt::format("the header claims {} bytes, at most {} are allowed", length,
                       kMaxHeaderBytes));
    }
    if (length > file_.size() - kLengthBytes) {
      fail(fmt::format("the file is truncated: its header claims {} bytes, {} follow", length,
                       file_.size() - kLengthBytes));
    }
    return {reinterpret_cast<const char*>(file_.data()) + kLengthBytes, length};
  }

  // Keys may not repeat at any level: which of two entries counts would be anyone's guess.
  [[nodiscard]] HeaderJson parse_header(std::string_view text) const {
    using Event = HeaderJson::parse_event_t;
    std::vector<std::set<std::string>> seen;
    const auto watch = [&](int depth, Event event, HeaderJson& value) {
      if (depth > kMaxDepth) fail("the header is nested too deeply");
      if (event == Event::object_start) seen.emplace_back();
      if (event == Event::object_end) seen.pop_back();
      if (event == Event::key && !seen.back().insert(value.get<std::string>()).second) {
        fail(fmt::format("the name '{}' stands twice in the header", value.get<std::string>()));
      }
      return true;
    };
    try {
      return HeaderJson::parse(text.begin(), text.end(), watch);
    } catch (const HeaderJson::exception& error) {
      fail(fmt::format("the header is not JSON: {}", error.what()));
    }
  }

  [[nodiscard]] const HeaderJson& field(const std::string& name, const HeaderJson& entry,
                                        const char* key) const {
    if (!entry.is_object()) fail(name, "is not described by an object");
    const auto found = entry.find(key);
    if (found == entry.end()) fail(name, fmt::format("lacks '{}'", key));
    return *found;
  }

  [[nodiscard]] DType read_dtype(const std::string& name, const HeaderJson& value) const {
    if (!value.is_string()) fail(name, "has a dtype that is not a string");
    const auto& text = value.get_ref<const std::string&>();
    for (const DTypeName& known : kDTypeNames) {
      if (known.name == text) return known.dtype;
    }
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: tensor '{}' has the unknown dtype {}", file_name_, name, text),
                "Glimpse reads F32, F16, BF16 and F8_E4M3 weights");
  }

  // Every size is below 2^62, so that the product below cannot overflow unnoticed.
  [[nodiscard]] std::vector<int64_t> read_sizes(const std::string& name, const HeaderJson& value,
                                                std::string_view what, size_t most) const {
    if (!value.is_array() || value.size() > most) {
      fail(name, fmt::format("has a '{}' that is not a list of at most {} numbers", what, most));
    }
    std::vector<int64_t> sizes;
    for (const HeaderJson& item : value) {
      if (!item.is_number_unsigned() || item.get<uint64_t>() > uint64_t{1} << 62U) {
        fail(name, fmt::format("has an impossible number in '{}': {}", what,
                               item.dump(-1, ' ', false, HeaderJson::error_handler_t::replace)));
      }
      sizes.push_back(item.get<int64_t>());
    }
    return sizes;
  }

  [[nodiscard]] StoredTensor read_entry(const std::string& name, const HeaderJson& entry) const {
    StoredTensor tensor;
    tensor.name = name;
    tensor.dtype = read_dtype(name, field(name, entry, "dtype"));
    tensor.shape = read_sizes(name, field(name, entry, "shape"), "shape", kMaxDimensions);
    const std::vector<int64_t> offsets =
        read_sizes(name, field(name, entry, "data_offsets"), "data_offsets", 2);
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      fail(name, "has data_offsets that are not [begin, end]");
    }
    const auto size = static_cast<int64_t>(data_.size());
    if (offsets[1] > size) {
      fail(name, fmt::format("ends at byte {} of the data, but only {} are there: the file is "
                             "truncated",
                             offsets[1], size));
    }
    const std::optional<int64_t> expected = num_bytes(tensor, size);
    if (expected != offsets[1] - offsets[0]) {
      fail(name, fmt::format("has {} bytes, which its shape and dtype contradict",
                             offsets[1] - offsets[0]));
    }
    tensor.bytes = data_.subspan(static_cast<size_t>(offsets[0]),
                                 static_cast<size_t>(offsets[1] - offsets[0]));
    return tensor;
  }

  // Bytes by shape and dtype; nothing when that exceeds `limit`.
  [[nodiscard]] static std::optional<int64_t> num_bytes(const StoredTensor& tensor, int64_t limit) {
    const bool is_empty =
        std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end();
    if (is_empty) return 0;
    int64_t bytes = bytes_of(tensor.dtype);
    for (const int64_t size : tensor.shape) {
      if (bytes > limit / size) return std::nullopt;
      bytes *= size;
    }
    return bytes;
  }

  void check_overlap(const std::vector<StoredTensor>& tensors) const {
    std::vector<const StoredTensor*> order;
    for (const StoredTensor& tensor : tensors) {
      if (!tensor.bytes.empty()) order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
      return a->bytes.data() < b->bytes.data();
    });
    for (size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1]->bytes.data() + order[i - 1]->bytes.size() > order[i]->bytes.data()) {
        fail(fmt::format("tensors '{}' and '{}' overlap", order[i - 1]->name, order[i]->name));
      }
    }
  }

  std::span<const std::byte> file_;
  std::span<const std::byte> data_;
  std::string_view file_name_;
};

}  // namespace

std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> file,
                                            std::string_view file_name) {
  return HeaderParser(file, file_name).parse();
}

}  // namespace glimpse
