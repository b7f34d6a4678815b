#include "runtime/process_memory.h"

#include <fstream>
#include <sstream>
#include <string>

namespace glimpse {

ProcessMemory process_memory() {
  ProcessMemory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string key;
    int64_t kibibytes = 0;
    if (!(words >> key >> kibibytes)) continue;
    if (key == "VmRSS:") memory.resident_bytes = kibibytes << 10;
    if (key == "VmHWM:") memory.peak_resident_bytes = kibibytes << 10;
  }
  return memory;
}

}  // namespace glimpse
