// Where the test data is. Two golden pictures that are too large for the project lie in ../shared
// beside it; a test that needs them skips, saying so, where that folder is absent.
#pragma once

#include <filesystem>

#include <gtest/gtest.h>

namespace glimpse::testing {

inline std::filesystem::path source_dir() {
  return GLIMPSE_SOURCE_DIR;
}
inline std::filesystem::path golden_dir() {
  return source_dir() / "tests" / "golden";
}
/// The folders that tests/golden keeps as .tar.xz; CMake unpacks them.
inline std::filesystem::path unpacked_golden_dir() {
  return std::filesystem::path(GLIMPSE_BINARY_DIR) / "golden";
}
inline std::filesystem::path demo_model_dir() {
  return source_dir() / "models" / "demo";
}
inline std::filesystem::path shared_dir() {
  return source_dir().parent_path() / "shared";
}

}  // namespace glimpse::testing

/// Skips the current test unless `path` exists.
#define GLIMPSE_REQUIRE_FILE(path)                                          \
  if (!std::filesystem::exists(path)) {                                     \
    GTEST_SKIP() << "needs " << (path) << ", which is not on this machine"; \
  }
