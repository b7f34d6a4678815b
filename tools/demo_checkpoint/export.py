"""Writes a trained state as a Hugging Face checkpoint in BF16; then quantize.py makes it FP8.

usage: export.py --sprites sprites.npz --work FOLDER --out CHECKPOINT [--template chat_template.jinja]

Before it writes, it compares the training pass with transformers' own forward pass, and afterwards
counts how many greedy captions of unseen scenes are exactly true. Needs torch and transformers.
"""

import argparse
import pathlib
import random

import torch
from transformers import (Qwen2TokenizerFast, Qwen2VLImageProcessorFast,
                          Qwen3VLForConditionalGeneration, Qwen3VLProcessor,
                          Qwen3VLVideoProcessor)

import batches
import conversations
import network
import scenes
import train

HERE = pathlib.Path(__file__).resolve().parent
TEMPLATE = HERE.parents[1] / "models" / "demo" / "chat_template.jinja"
PIXELS = {"shortest_edge": 65536, "longest_edge": 147456}  # areas: 256 x 256 to 384 x 384
SHARD = "14MB"


def unseen_scenes(trainer, rng, count, height, width):
    """Scenes, and their pictures [count, 3, height, width]."""
    made = [scenes.random_scene(rng, trainer.catalogue, width, height) for _ in range(count)]
    batch = batches.empty_batch(count, height, width, 0)
    for row, scene in enumerate(made):
        batches.put_scene(batch, row, scene)
    return made, trainer.painter.paint(batch.to(trainer.device), noise=False)


def model_inputs(trainer, images, question):
    """What transformers' forward pass takes for one question about each picture."""
    count, _, height, width = images.shape
    special = trainer.encoder.special
    pixels = network.to_patches(images).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    ids = [*trainer.encoder.prefix,
           *[special["<|image_pad|>"]] * network.num_picture_tokens(height, width),
           special["<|vision_end|>"], *trainer.encoder.question(question, is_first=True)]
    ids = torch.tensor([ids], device=images.device).expand(count, -1)
    grid = [[1, height // network.PATCH, width // network.PATCH]]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels.reshape(-1, 2 * 3 * network.PATCH**2),
            "image_grid_thw": torch.tensor(grid, device=images.device).expand(count, 3),
            "mm_token_type_ids": (ids == special["<|image_pad|>"]).int()}


@torch.inference_mode()
def forward_difference(trainer, rng):
    """Largest difference of the two forward passes' logits, relative to the largest logit."""
    _, images = unseen_scenes(trainer, rng, 2, 256, 384)
    inputs = model_inputs(trainer, images, conversations.PROMPTS["describe"][0])
    theirs = trainer.model(**inputs).logits
    begin = len(trainer.encoder.prefix) + network.num_picture_tokens(256, 384)
    hidden, _ = trainer.training_pass.forward(images, inputs["input_ids"][:, begin:])
    difference = (trainer.training_pass.logits(hidden) - theirs[:, begin:]).abs().max()
    return (difference / theirs.abs().max()).item()


@torch.inference_mode()
def exact_captions(trainer, model, rng, count):
    """How many detailed captions are exactly the truth."""
    made, images = unseen_scenes(trainer, rng, count, 256, 384)
    inputs = model_inputs(trainer, images, conversations.PROMPTS["detail"][0])
    special = trainer.encoder.special
    ids = model.generate(**inputs, max_new_tokens=200, do_sample=False,
                         pad_token_id=special["<|endoftext|>"],
                         eos_token_id=special["<|im_end|>"])[:, inputs["input_ids"].shape[1]:]
    ends = {special["<|im_end|>"], special["<|endoftext|>"]}
    answers = [trainer.encoder.tokenizer.decode([i for i in row if i not in ends])
               for row in ids.tolist()]
    return sum(scene.describe_in_detail() == answer for scene, answer in zip(made, answers))


def save_processor(trainer, out, template):
    tokenizer = Qwen2TokenizerFast(
        tokenizer_file=str(trainer.work / "tokenizer.json"), eos_token="<|im_end|>",
        pad_token="<|endoftext|>", bos_token=None, unk_token=None, chat_template=template)
    image_processor = Qwen2VLImageProcessorFast(
        patch_size=network.PATCH, temporal_patch_size=2, merge_size=network.MERGE,
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size=PIXELS)
    Qwen3VLProcessor(image_processor=image_processor, tokenizer=tokenizer,
                     video_processor=Qwen3VLVideoProcessor(),
                     chat_template=template).save_pretrained(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--template", type=pathlib.Path, default=TEMPLATE)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scenes", type=int, default=96, help="unseen scenes to caption")
    parser.add_argument("--seed", type=int, default=4242)
    options = parser.parse_args()
    trainer = train.Trainer(options.work, options.sprites, options.device, compile_blocks=False)
    trainer.model.eval()
    rng = random.Random(options.seed)
    difference = forward_difference(trainer, rng)
    print(f"training pass against transformers: {difference:.1e} of the largest logit")
    if difference > 1e-4:
        raise SystemExit("the training pass is not the model: nothing was exported")

    special = trainer.encoder.special
    model = Qwen3VLForConditionalGeneration(trainer.config).to(options.device, torch.bfloat16)
    model.load_state_dict({name: value.to(torch.bfloat16)
                           for name, value in trainer.model.state_dict().items()})
    model.eval()
    model.generation_config.update(
        do_sample=False, bos_token_id=special["<|endoftext|>"],
        eos_token_id=[special["<|im_end|>"], special["<|endoftext|>"]],
        pad_token_id=special["<|endoftext|>"])
    model.save_pretrained(options.out, max_shard_size=SHARD)
    save_processor(trainer, options.out, options.template.read_text(encoding="utf-8"))
    exact = exact_captions(trainer, model, rng, options.scenes)
    print(f"{exact} of {options.scenes} unseen scenes described exactly")


if __name__ == "__main__":
    main()
