// Vision weights on demand: the matrices of the tower stay in the mapped files and come to the
// device block by block, into two slots in turn, so that one is filled while the other is computed
// with. A GPU's arena then holds two blocks instead of all of them. Norms, biases of norms, the
// patch embedding and the position table are small and stay on the device.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "model/weight_binder.h"
#include "model/weights.h"

namespace glimpse {

/// The index of the merger that makes the picture's embeddings; DeepStack mergers count from 0.
inline constexpr int64_t kMainMerger = -1;

/// Uploads are ordered with the operations around them, so a slot is never overwritten while it is
/// read. Store, backend and resident weights must outlive it.
class VisionWeightStream {
 public:
  static constexpr int kSlots = 2;

  /// Bytes of one slot: the largest block or merger as the backend lays it out.
  [[nodiscard]] static int64_t slot_bytes(WeightStore& store, const VisionConfig& config,
                                          Backend& backend);
  /// Takes what the constructor will take; for measuring arenas.
  static void carve(int64_t slot_bytes, Arena& arena);

  /// `resident`: bound with BindOptions::streams_vision. Takes the slots from `arena`; nothing is
  /// kept in them between two vision passes.
  VisionWeightStream(WeightStore& store, const VisionConfig& config, Backend& backend,
                     const VisionWeights& resident, Arena& arena);

  /// Valid until the call after the next.
  [[nodiscard]] const VisionBlockWeights& block(int64_t index);
  [[nodiscard]] const VisionMergerWeights& merger(int64_t index);

 private:
  struct Slot {
    Slot(WeightStore& store, Backend& backend, const BindOptions& options, const Tensor& bytes);

    Arena arena;
    WeightBinder binder;
    VisionBlockWeights block;
    VisionMergerWeights merger;
  };
  Slot& next_slot();

  WeightStore& store_;
  VisionConfig config_;
  const VisionWeights& resident_;
  // The same pages are read for every picture: they stay in host memory.
  BindOptions options_{.releases_pages = false};
  std::array<std::unique_ptr<Slot>, kSlots> slots_;
  size_t next_ = 0;
};

}  // namespace glimpse
