#include "image/pixel_buffers.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace glimpse {
namespace {

constexpr size_t kMostKeptBytes = size_t{32} << 20;
// Small ones come from the allocator's own lists, without new pages.
constexpr size_t kLeastKeptBytes = size_t{256} << 10;
// A buffer is not given to a picture that would leave most of it unused.
constexpr size_t kMostSpare = 4;

struct Kept {
  std::mutex mutex;
  std::vector<std::vector<uint8_t>> buffers;
  size_t bytes = 0;
};

Kept& kept() {
  static Kept& buffers = *new Kept;  // threads may outlive static objects
  return buffers;
}

std::vector<uint8_t> find_buffer(size_t size) {
  Kept& all = kept();
  const std::lock_guard lock(all.mutex);
  const auto found = std::ranges::find_if(all.buffers, [&](const std::vector<uint8_t>& buffer) {
    return buffer.capacity() >= size && buffer.capacity() / kMostSpare <= size;
  });
  if (found == all.buffers.end()) return {};
  std::vector<uint8_t> buffer = std::move(*found);
  all.bytes -= buffer.capacity();
  all.buffers.erase(found);
  return buffer;
}

}  // namespace

std::vector<uint8_t> take_pixels(size_t size) {
  std::vector<uint8_t> buffer;
  if (size >= kLeastKeptBytes) buffer = find_buffer(size);
  buffer.assign(size, 0);
  return buffer;
}

void recycle_pixels(std::vector<uint8_t> pixels) {
  if (pixels.capacity() < kLeastKeptBytes || pixels.capacity() > kMostKeptBytes) return;
  Kept& all = kept();
  const std::lock_guard lock(all.mutex);
  all.bytes += pixels.capacity();
  while (all.bytes > kMostKeptBytes) {  // the oldest fits the least of what comes now
    all.bytes -= all.buffers.front().capacity();
    all.buffers.erase(all.buffers.begin());
  }
  all.buffers.push_back(std::move(pixels));
}

}  // namespace glimpse
