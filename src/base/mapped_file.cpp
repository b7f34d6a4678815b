#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace glimpse {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    throw Error(ErrorCode::not_found,
                fmt::format("cannot open {}: {}", path.string(), std::strerror(errno)),
                "check who may read it; if a download broke off, finish it");
  }
  struct stat status {};
  const bool is_regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  if (!is_regular) {
    ::close(file);
    throw Error(ErrorCode::not_found, fmt::format("{} is not a regular file", path.string()),
                "put the checkpoint's file in its place");
  }
  size_ = static_cast<size_t>(status.st_size);
  void* mapping = MAP_FAILED;
  if (size_ > 0) mapping = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
  const int error = errno;
  ::close(file);
  if (size_ == 0) return;
  if (mapping == MAP_FAILED) {
    throw Error(ErrorCode::out_of_memory, fmt::format("cannot map {} ({} bytes): {}", path.string(),
                                                      size_, std::strerror(error)));
  }
  data_ = static_cast<const std::byte*>(mapping);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::prefetch() const {
  if (data_ != nullptr) ::madvise(const_cast<std::byte*>(data_), size_, MADV_WILLNEED);
}

void MappedFile::release(std::span<const std::byte> part) const {
  if (part.empty()) return;
  // Only whole pages inside the part: its neighbours share the first and last page.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace glimpse
