"""Reads and writes safetensors files as raw bytes. Standard library only."""

import dataclasses
import json
import struct


@dataclasses.dataclass(frozen=True)
class RawTensor:
    dtype: str  # as the file names it: "BF16", "F8_E4M3"
    shape: tuple
    data: bytes


def read(path):
    """name -> RawTensor of one file."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header, begin = json.loads(content[8:8 + length]), 8 + length
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            tensors[name] = RawTensor(entry["dtype"], tuple(entry["shape"]),
                                      content[begin + first:begin + last])
    return tensors


def write(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape),
                        "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.data)


def write_shards(folder, shards):
    """Writes model-0000i-of-0000n.safetensors and the index that names each tensor's file."""
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / name, shard)
        weight_map.update(dict.fromkeys(shard, name))
        total += sum(len(tensor.data) for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
