// Where the demo checkpoint is: beside the installed program or library, else in the source tree
// that this library was built from.
#include <dlfcn.h>

#include <filesystem>
#include <vector>

#include "glimpse/engine.h"

namespace glimpse {
namespace {

namespace fs = std::filesystem;

// The file this code was loaded from: the program, or the shared library.
fs::path own_file() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&bundled_model_directory), &info) == 0) return {};
  std::error_code ignored;
  return fs::canonical(info.dli_fname, ignored);
}

}  // namespace

fs::path bundled_model_directory() {
  std::error_code ignored;
  const fs::path installed = fs::path("share") / "glimpse" / "models" / "demo";
  // bin/glimpse, lib/libglimpse.so, lib/x86_64-linux-gnu/libglimpse.so
  std::vector<fs::path> prefixes;
  for (const fs::path& file : {fs::canonical("/proc/self/exe", ignored), own_file()}) {
    if (file.empty()) continue;
    prefixes.push_back(file.parent_path().parent_path());
    prefixes.push_back(file.parent_path().parent_path().parent_path());
  }
  for (const fs::path& prefix : prefixes) {
    if (fs::exists(prefix / installed / "config.json", ignored)) return prefix / installed;
  }
  const fs::path in_source_tree = GLIMPSE_BUNDLED_MODEL;
  if (fs::exists(in_source_tree / "config.json", ignored)) return in_source_tree;
  throw Error(ErrorCode::not_found, "the bundled demo checkpoint is not installed",
              "name a checkpoint with --model, or install Glimpse again");
}

}  // namespace glimpse
