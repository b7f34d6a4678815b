// A file mapped read-only into memory: weights are used where the page cache holds them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace glimpse {

/// Owns one read-only mapping. Movable; the bytes stay at the same address for its whole life.
/// Throws Error(not_found) when the file cannot be opened. An empty file gives an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Asks the kernel to start reading the whole file now, without waiting for it.
  void prefetch() const;
  /// Gives the resident pages of `part` (a piece of bytes()) back to the page cache: they leave
  /// this process's memory and are read again on the next access.
  void release(std::span<const std::byte> part) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace glimpse
