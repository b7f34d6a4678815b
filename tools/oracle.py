#!/usr/bin/env python3
"""What transformers says of one picture with any checkpoint directory, as JSON on standard output.

usage: oracle.py CHECKPOINT PICTURE [--prompt "..." | --prompt-ids 100,200] [--device cuda]

Made for checkpoints of the real shapes that `glimpse synth` writes: without a tokenizer the prompt
is the picture between its two marks, then --prompt-ids. Prints the prompt's ids, the patch grid,
the most likely first tokens with their log-probabilities and some greedy ids. --dtype float32
dequantises FP8 and computes in F32 (needs 4 bytes a weight); bfloat16 is transformers' usual way.
"""

import argparse
import json
import pathlib

import torch

import reference_model


def picture_inputs(folder, picture, max_pixels):
    """pixel_values and image_grid_thw by the checkpoint's image processor, or Qwen's defaults."""
    import transformers
    from transformers.image_utils import load_image
    settings = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_text())
            settings = {"size": config.get("image_processor", config)["size"]}
            break
    if max_pixels:
        settings["size"]["longest_edge"] = max_pixels
    processor_class = getattr(transformers, "Qwen2VLImageProcessorFast", None) or \
        transformers.Qwen2VLImageProcessor
    processor = processor_class(patch_size=16, temporal_patch_size=2, merge_size=2,
                                image_mean=[0.5] * 3, image_std=[0.5] * 3, **settings)
    return processor(images=[load_image(str(picture))], return_tensors="pt")


def prompt_ids(folder, config, num_picture_tokens, options):
    """The chat template's frame where there is a tokenizer, else the bare picture and ids."""
    picture = [config.vision_start_token_id, *[config.image_token_id] * num_picture_tokens,
               config.vision_end_token_id]
    if options.prompt_ids:
        return [*picture, *map(int, options.prompt_ids.split(","))]
    file = folder / "tokenizer.json"
    if not file.exists():
        raise SystemExit(f"{folder} has no tokenizer: give --prompt-ids")
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(file))

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    return [*encode("<|im_start|>user\n"), *picture, *encode(options.prompt),
            *encode("<|im_end|>\n<|im_start|>assistant\n")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--prompt", default="Describe this image in detail.")
    parser.add_argument("--prompt-ids", help="after the picture, instead of --prompt; commas")
    parser.add_argument("--max-pixels", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16, help="greedy tokens")
    options = parser.parse_args()
    reference_model.exact_arithmetic()
    dtype = getattr(torch, options.dtype)
    model = reference_model.load_model(options.checkpoint, options.device, dtype)
    picture = picture_inputs(options.checkpoint, options.picture, options.max_pixels)
    grid = picture["image_grid_thw"][0].tolist()
    ids = prompt_ids(options.checkpoint, model.config, grid[0] * grid[1] * grid[2] // 4, options)
    inputs = reference_model.with_token_types(model, {
        "input_ids": torch.tensor([ids], device=options.device),
        "pixel_values": picture["pixel_values"].to(options.device, dtype),
        "image_grid_thw": picture["image_grid_thw"].to(options.device)})
    greedy, logits, gap = reference_model.greedy(model, inputs, options.tokens)
    print(json.dumps({"grid_thw": grid, "prompt_ids": ids, "dtype": options.dtype,
                      "first_token_top": reference_model.top_log_probs(logits, options.top),
                      "greedy_ids": greedy, "smallest_top2_logit_gap": round(gap, 5)}))


if __name__ == "__main__":
    main()
