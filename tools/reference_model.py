"""Qwen3-VL as transformers computes it in F32, from any of our checkpoints; what make_golden.py and
oracle.py share. Needs torch and transformers.

FP8 weights are dequantised to F32 (value times block scale) before transformers sees them: that is
the arithmetic that `--arithmetic exact` reproduces.
"""

import json

import torch
from safetensors import safe_open
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

FP8_BLOCK = 128


def exact_arithmetic():
    """No TF32: an F32 product is one in every bit that F32 has."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def dequantized(weight, scale):
    """F32 values of a block-scaled FP8 weight; blocks at the edges may be cut."""
    scale = scale.float()
    for dim in (0, 1):
        scale = scale.repeat_interleave(FP8_BLOCK, dim)
    return weight.float() * scale[:weight.shape[0], :weight.shape[1]]


def read_weights(folder):
    """name -> F32 tensor of a checkpoint directory."""
    raw = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith("stages"):
            continue
        with safe_open(path, framework="pt") as file:
            raw.update({name: file.get_tensor(name) for name in file.keys()})
    scales = {name: raw.pop(name) for name in list(raw) if name.endswith("_scale_inv")}
    weights = {}
    for name, weight in raw.items():
        scale = scales.pop(f"{name}_scale_inv", None)
        weights[name] = weight.float() if scale is None else dequantized(weight, scale)
    if scales:
        raise SystemExit(f"scales without a weight: {', '.join(scales)}")
    return weights


def load_model(folder, device="cpu", dtype=torch.float32):
    """The checkpoint as a transformers model; every weight of it must be used."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    weights = read_weights(folder)
    # The file decides whether the head is tied, whatever the config repeats further down.
    tied = "lm_head.weight" not in weights
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tied
    config.pop("dtype", None)
    config.pop("torch_dtype", None)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not (tied and name == "lm_head.weight")]
    if missing or unexpected:
        raise SystemExit(f"{folder}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.to(device, dtype).eval()


def first_output(value):
    return value[0] if isinstance(value, tuple) else value


class Stages:
    """Records the intermediate tensors of a forward pass under the names of the golden files."""

    def __init__(self, model):
        self.tensors, self.handles = {}, []
        vision, text = model.model.visual, model.model.language_model
        num_taps = len(model.config.vision_config.deepstack_visual_indexes)
        self.output(vision.patch_embed, "vision.patch_embed")
        self.input(vision.blocks[0], "vision.embedded")
        for number, block in enumerate(vision.blocks):
            self.output(block, f"vision.block.{number}")
        for number, merger in enumerate(vision.deepstack_merger_list):
            self.output(merger, f"vision.deepstack.{number}")
        self.output(vision.merger, "vision.merger")
        self.input(text.layers[0], "text.inputs_embeds")
        for number, layer in enumerate(text.layers):
            self.output(layer, f"text.layer.{number}")
            if number < num_taps:
                # The rows are added outside the layer: seen where the next one begins.
                following = text.layers[number + 1] if number + 1 < len(text.layers) else text.norm
                self.input(following, f"text.layer.{number}.after_deepstack")
        self.output(text.norm, "text.norm")

    def keep(self, name, value):
        value = first_output(value).detach().float().cpu()
        # Only the first pass: generation calls the layers again.
        self.tensors.setdefault(name, value.reshape(-1, value.shape[-1]).clone())

    def output(self, module, name):
        self.handles.append(module.register_forward_hook(
            lambda _module, _inputs, value: self.keep(name, value)))

    def input(self, module, name):
        def hook(_module, inputs, keywords):
            self.keep(name, inputs[0] if inputs else keywords["hidden_states"])
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def stop(self):
        for handle in self.handles:
            handle.remove()
        return self.tensors


def positions(model, inputs):
    """position_ids [3, tokens] and the rope delta of one prompt."""
    types = inputs.get("mm_token_type_ids")
    ids, delta = model.model.get_rope_index(
        inputs["input_ids"], types, image_grid_thw=inputs.get("image_grid_thw"))
    return ids[:, 0], delta.reshape(-1)


def with_token_types(model, inputs):
    """transformers 5 wants to be told which tokens are pictures."""
    if "mm_token_type_ids" not in inputs:
        is_picture = inputs["input_ids"] == model.config.image_token_id
        inputs["mm_token_type_ids"] = is_picture.int()
    return inputs


@torch.inference_mode()
def greedy(model, inputs, max_tokens, stop_ids=()):
    """(ids, first step's logits [vocab], smallest gap of the two best logits of any step)."""
    length = inputs["input_ids"].shape[1]
    result = model.generate(
        **inputs, max_new_tokens=max_tokens, min_new_tokens=None, do_sample=False,
        eos_token_id=list(stop_ids) or None, pad_token_id=0, return_dict_in_generate=True,
        output_logits=True)
    ids = result.sequences[0, length:].tolist()
    logits = torch.stack([step[0].float() for step in result.logits])
    best = logits.topk(2, dim=-1).values
    return ids, logits[0], (best[:, 0] - best[:, 1]).min().item()


def top_log_probs(logits, count):
    """[[id, log-probability], ...] of the most likely tokens, best first."""
    values, ids = torch.log_softmax(logits.double(), -1).topk(count)
    return [[token, round(value, 5)] for token, value in zip(ids.tolist(), values.tolist())]
