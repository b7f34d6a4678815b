// Where the test data is. Golden files that are too large for the project lie in ../shared beside
// it; a test that needs them skips, saying so, where that folder is absent.
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
