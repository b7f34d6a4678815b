#include <algorithm>

#include "model/vision_weight_stream.h"
#include "model/weight_binder.h"
#include "model/weights.h"

namespace glimpse {
namespace {

struct BlockNormName {
  std::string_view name;
  LayerNormWeights VisionBlockWeights::*field;
};
constexpr BlockNormName kBlockNorms[] = {{"norm1", &VisionBlockWeights::norm1},
                                         {"norm2", &VisionBlockWeights::norm2}};

std::string block_prefix(const WeightStore& store, int64_t index) {
  return fmt::format("{}blocks.{}.", store.vision_prefix(), index);
}

std::string merger_prefix(const WeightStore& store, int64_t index) {
  if (index == kMainMerger) return store.vision_prefix() + "merger.";
  return fmt::format("{}deepstack_merger_list.{}.", store.vision_prefix(), index);
}

void bind_block_norms(const VisionConfig& config, const std::string& prefix, WeightBinder& binder,
                      VisionBlockWeights& block) {
  for (const BlockNormName& entry : kBlockNorms) {
    block.*entry.field =
        binder.layer_norm(fmt::format("{}{}", prefix, entry.name), config.hidden_size);
  }
}

void bind_block_linears(const VisionConfig& config, const std::string& prefix, WeightBinder& binder,
                        VisionBlockWeights& block) {
  const int64_t hidden = config.hidden_size;
  block.qkv = binder.linear(prefix + "attn.qkv", 3 * hidden, hidden);
  block.proj = binder.linear(prefix + "attn.proj", hidden, hidden);
  block.linear_fc1 = binder.linear(prefix + "mlp.linear_fc1", config.intermediate_size, hidden);
  block.linear_fc2 = binder.linear(prefix + "mlp.linear_fc2", hidden, config.intermediate_size);
}

// The main merger normalises single patches, the others what they have joined.
LayerNormWeights bind_merger_norm(const WeightStore& store, const VisionConfig& config,
                                  int64_t index, WeightBinder& binder) {
  const int64_t joined = index == kMainMerger ? 1 : config.merge_area();
  return binder.layer_norm(merger_prefix(store, index) + "norm", joined * config.hidden_size);
}

void bind_merger_linears(const VisionConfig& config, const std::string& prefix,
                         WeightBinder& binder, VisionMergerWeights& merger) {
  const int64_t merged = config.merge_area() * config.hidden_size;
  merger.linear_fc1 = binder.linear(prefix + "linear_fc1", merged, merged);
  merger.linear_fc2 = binder.linear(prefix + "linear_fc2", config.out_hidden_size, merged);
}

}  // namespace

VisionWeights bind_vision_weights(WeightStore& store, const VisionConfig& config, Backend& backend,
                                  Arena& arena, const BindOptions& options) {
  WeightBinder binder(store, backend, arena, options);
  const std::string& prefix = store.vision_prefix();
  const int64_t hidden = config.hidden_size;
  VisionWeights weights;
  const LinearPart patch_embed =
      store.linear_part(prefix + "patch_embed.proj", hidden, config.patch_features(),
                        {hidden, config.in_channels, config.temporal_patch_size, config.patch_size,
                         config.patch_size});
  weights.patch_embed = binder.linear({&patch_embed, 1}, LinearLayout::plain);
  const Tensor table =
      store.get(prefix + "pos_embed.weight", {config.num_position_embeddings, hidden},
                {DType::f32, DType::f16, DType::bf16});
  weights.pos_embed = binder.table(table, table.dtype() == DType::bf16 ? DType::bf16 : DType::f32);
  weights.blocks.resize(static_cast<size_t>(config.depth));
  for (int64_t i = 0; i < config.depth; ++i) {
    VisionBlockWeights& block = weights.blocks[static_cast<size_t>(i)];
    bind_block_norms(config, block_prefix(store, i), binder, block);
    if (!options.streams_vision) bind_block_linears(config, block_prefix(store, i), binder, block);
  }
  for (int64_t i = kMainMerger; i < config.num_deepstack(); ++i) {
    VisionMergerWeights merger;
    merger.norm = bind_merger_norm(store, config, i, binder);
    if (!options.streams_vision) {
      bind_merger_linears(config, merger_prefix(store, i), binder, merger);
    }
    if (i == kMainMerger) {
      weights.merger = std::move(merger);
    } else {
      weights.deepstack_mergers.push_back(std::move(merger));
    }
  }
  return weights;
}

// ---- streaming --------------------------------------------------------------------------------

namespace {

Buffer part_of(const Tensor& bytes) {
  return {bytes.raw(), bytes.num_bytes(), bytes.device(), [](std::byte*) {}};
}

}  // namespace

VisionWeightStream::Slot::Slot(WeightStore& store, Backend& backend, const BindOptions& options,
                               const Tensor& bytes)
    : arena(part_of(bytes), "streamed vision weights"), binder(store, backend, arena, options) {}

int64_t VisionWeightStream::slot_bytes(WeightStore& store, const VisionConfig& config,
                                       Backend& backend) {
  Arena arena = Arena::measuring(backend.device());
  const BindOptions options;
  WeightBinder binder(store, backend, arena, options);
  const auto measure = [&](const auto& bind) {
    const ArenaScope scope(arena);
    bind();
  };
  VisionBlockWeights block;
  VisionMergerWeights merger;
  for (int64_t i = 0; i < config.depth; ++i) {
    measure([&] { bind_block_linears(config, block_prefix(store, i), binder, block); });
  }
  for (int64_t i = kMainMerger; i < config.num_deepstack(); ++i) {
    measure([&] { bind_merger_linears(config, merger_prefix(store, i), binder, merger); });
  }
  return arena.peak_bytes();
}

void VisionWeightStream::carve(int64_t slot_bytes, Arena& arena) {
  for (int i = 0; i < kSlots; ++i) {
    static_cast<void>(arena.allocate(DType::u8, {std::max<int64_t>(slot_bytes, 1)}));
  }
}

VisionWeightStream::VisionWeightStream(WeightStore& store, const VisionConfig& config,
                                       Backend& backend, const VisionWeights& resident,
                                       Arena& arena)
    : store_(store), config_(config), resident_(resident) {
  const int64_t bytes = std::max<int64_t>(slot_bytes(store, config, backend), 1);
  for (auto& slot : slots_) {
    slot = std::make_unique<Slot>(store, backend, options_, arena.allocate(DType::u8, {bytes}));
  }
}

VisionWeightStream::Slot& VisionWeightStream::next_slot() {
  next_ = (next_ + 1) % kSlots;
  Slot& slot = *slots_[next_];
  slot.arena.rewind(0);
  return slot;
}

const VisionBlockWeights& VisionWeightStream::block(int64_t index) {
  Slot& slot = next_slot();
  slot.block = resident_.blocks[static_cast<size_t>(index)];
  bind_block_linears(config_, block_prefix(store_, index), slot.binder, slot.block);
  return slot.block;
}

const VisionMergerWeights& VisionWeightStream::merger(int64_t index) {
  Slot& slot = next_slot();
  slot.merger = index == kMainMerger ? resident_.merger
                                     : resident_.deepstack_mergers[static_cast<size_t>(index)];
  bind_merger_linears(config_, merger_prefix(store_, index), slot.binder, slot.merger);
  return slot.merger;
}

}  // namespace glimpse
