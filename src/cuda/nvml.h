// What the driver's management library knows without a CUDA context: the memory of a card. Loaded
// at run time; where it is missing nothing is known.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace glimpse::cuda {

struct CardMemory {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};

/// `pci_bus_id` as cudaDeviceGetPCIBusId() writes it.
[[nodiscard]] std::optional<CardMemory> read_card_memory(const std::string& pci_bus_id);

}  // namespace glimpse::cuda
