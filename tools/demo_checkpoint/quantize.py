"""Quantises the text projections of a BF16 checkpoint to block-scaled FP8. Needs NumPy.

usage: quantize.py BF16_FOLDER OUT_FOLDER

The layout is that of Qwen's -FP8 releases: e4m3 values in blocks of 128 x 128 and beside each
weight its `weight_scale_inv`, which multiplies. Scales are rounded to BF16 before they are used,
so that storing them loses nothing. Two shards, text and vision, so that sharded loading is used.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np

import safetensors_file
from safetensors_file import RawTensor

BLOCK = 128
MAX_E4M3 = 448.0


def e4m3_values():
    """The 127 values of the codes 0x00 .. 0x7E, rising from 0 to 448."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6,
                    (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def to_e4m3(values):
    """Codes of the nearest e4m3 values, ties to the even mantissa; |values| at most 448."""
    table, magnitude = e4m3_values(), np.abs(values).astype(np.float64)
    upper = np.searchsorted(table, magnitude).clip(1, 126)
    below, above = magnitude - table[upper - 1], table[upper] - magnitude
    take_lower = (below < above) | ((below == above) & ((upper - 1) % 2 == 0))
    return (np.where(take_lower, upper - 1, upper) | (np.signbit(values) << 7)).astype(np.uint8)


def round_to_bf16(values):
    """float32 values rounded to the nearest BF16, ties to even; still float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def quantize(weight):
    """weight [rows, columns] -> codes of that shape, scales [ceil(rows/128), ceil(columns/128)]."""
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, -rows % BLOCK), (0, -columns % BLOCK)))
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scales = round_to_bf16(np.abs(blocks).max(axis=(1, 3)) / MAX_E4M3)
    scales = np.where(scales == 0, np.float32(1), scales)
    scaled = (blocks / scales[:, None, :, None]).clip(-MAX_E4M3, MAX_E4M3)
    return to_e4m3(scaled).reshape(padded.shape)[:rows, :columns], scales


def quantized_tensors(name, tensor):
    """The tensors that take the place of one tensor of the BF16 checkpoint."""
    if not (".language_model.layers." in name and name.endswith("_proj.weight")):
        return {name: tensor}
    if tensor.dtype != "BF16":
        raise ValueError(f"{name} is {tensor.dtype}, not BF16")
    bits = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16
    codes, scales = quantize(bits.view(np.float32).reshape(tensor.shape))
    scale_bits = (scales.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return {name: RawTensor("F8_E4M3", tensor.shape, codes.tobytes()),
            f"{name}_scale_inv": RawTensor("BF16", scales.shape, scale_bits.tobytes())}


def quantize_checkpoint(source, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in safetensors_file.read(path).items():
            tensors.update(quantized_tensors(name, tensor))
    vision = {name for name in tensors if name.startswith("model.visual")}
    safetensors_file.write_shards(out, [
        {name: tensors[name] for name in sorted(tensors) if name not in vision},
        {name: tensors[name] for name in sorted(vision)}])
    for path in [*source.glob("*.json"), *source.glob("*.jinja")]:
        if path.name not in ("model.safetensors.index.json", "config.json"):
            shutil.copy(path, out)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": ["lm_head", "model.visual"]}
    (out / "config.json").write_text(json.dumps(config, indent=2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    quantize_checkpoint(options.source, options.out)


if __name__ == "__main__":
    main()
