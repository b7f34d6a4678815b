// The kept outcome of the self-test; includes no CUDA header.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/family.h"

namespace glimpse::cuda {

/// $XDG_CACHE_HOME/glimpse/self-test, or ~/.cache/glimpse/self-test; empty where there is no home.
[[nodiscard]] std::filesystem::path outcome_file();
/// One line: the card, its driver, and this program by size and time of change.
[[nodiscard]] std::string outcome_key(std::string_view card, int driver_version);

/// The families kept as failing for `key`; nullopt when nothing is kept for it.
[[nodiscard]] std::optional<std::vector<Family>> read_outcome(const std::filesystem::path& file,
                                                              std::string_view key);
/// Does nothing where the file cannot be written: the test is then run each time.
void write_outcome(const std::filesystem::path& file, std::string_view key,
                   const std::vector<Family>& failing);

}  // namespace glimpse::cuda
