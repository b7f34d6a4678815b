#!/usr/bin/env python3
"""Regenerates tests/golden from transformers, or compares what is there with it.

usage: make_golden.py [--check] {tiny,demo,preprocess,template,tokenizer,all} ...

With --check nothing is written: differences are printed, and the exit status is 1 if there are any.
Integers, texts and hashes must be equal; floating-point values may differ by --tolerance of the
largest value of their tensor (other releases of torch add in another order).

Made with transformers 5.17 and torch 2.11 in F32, TF32 off. With Pillow 13 one picture differs,
palette_transparent.png. Checkpoints, pictures and prompts are the input and stay as they are. Two
pictures are too large for the project and live in ../shared/golden beside it.
"""

import argparse
import contextlib
import hashlib
import io
import json
import pathlib
import sys
import tarfile
import tempfile

import torch

import reference_model

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared" / "golden"
DEMO_MODEL = ROOT / "models" / "demo"
STAGES_PICTURE, STAGES_PROMPT = "05.png", "Describe this image."
# Of a stage's rows every so-manieth is kept, counted back from the last. No multiple of 2: the
# rows of a merge block and of a repeated layout all get their turn.
TINY_ROW_STEP, DEMO_ROW_STEP = 3, 17
MAX_TOKENS = 256
NEAR_TIE = 0.01  # of the two best logits: another order of additions may choose the other token


class Results:
    """Writes results, or with check compares them with the files and counts differences."""

    def __init__(self, check, tolerance):
        self.check, self.tolerance, self.num_differences = check, tolerance, 0

    def differ(self, text):
        self.num_differences += 1
        print(f"DIFFERENT {text}")

    def json(self, path, made, indent=None):
        if not self.check:
            path.write_text(json.dumps(made, indent=indent, ensure_ascii=True), encoding="utf-8")
            print(f"wrote {path}")
            return
        before = self.num_differences
        self.compare(path.name, json.loads(path.read_text(encoding="utf-8")), made)
        print(f"{path}: {'equal' if before == self.num_differences else 'differs'}")

    def compare(self, where, golden, made):
        if isinstance(golden, dict) and isinstance(made, dict):
            for key in sorted(golden.keys() | made.keys()):
                if key not in golden or key not in made:
                    self.differ(f"{where}: {key} is only in the "
                                f"{'golden file' if key in golden else 'new result'}")
                else:
                    self.compare(f"{where}.{key}", golden[key], made[key])
        elif isinstance(golden, list) and isinstance(made, list) and len(golden) == len(made):
            if all(isinstance(value, (int, str)) for value in golden):
                if golden != made:
                    self.differ(f"{where}:\n  golden {golden}\n  new    {made}")
                return
            for number, (first, second) in enumerate(zip(golden, made)):
                name = first.get("file", number) if isinstance(first, dict) else number
                self.compare(f"{where}[{name}]", first, second)
        elif isinstance(golden, float) and isinstance(made, (int, float)):
            # Log-probabilities and logit gaps, of logits of about 30.
            if abs(golden - made) > 30 * self.tolerance:
                self.differ(f"{where}: golden {golden}, new {made}")
        elif golden != made:
            self.differ(f"{where}:\n  golden {golden!r}\n  new    {made!r}")

    def tensors(self, path, made, amplified=1):
        """`amplified`: how much more than other models this one makes of a rounding error."""
        from safetensors.torch import load_file, save_file
        if not self.check:
            save_file({name: value.contiguous() for name, value in made.items()}, path)
            print(f"wrote {path}")
            return
        golden, worst = load_file(path), (0.0, "none")
        for name in sorted(golden.keys() | made.keys()):
            if name not in golden or name not in made:
                self.differ(f"{path.name}: {name} is in one of the two only")
            elif golden[name].shape != made[name].shape:
                self.differ(f"{path.name} {name}: golden {tuple(golden[name].shape)}, "
                            f"new {tuple(made[name].shape)}")
            else:
                first, second = golden[name].double(), made[name].double()
                error = ((first - second).abs().max() / first.abs().max().clamp(min=1e-30)).item()
                worst = max(worst, (error, name))
                if error > self.tolerance * amplified:
                    self.differ(f"{path.name} {name}: {error:.1e} of the largest value")
        print(f"{path}: largest difference {worst[0]:.1e} ({worst[1]})")


def pixels_of(stages):
    """Normalised pixels; the tiny checkpoints' files hold the bytes they were made of."""
    stored = stages["pixel_values"]
    return stored if stored.is_floating_point() else (stored.float() - 127.5) / 127.5


def bytes_of(pixel_values):
    """The inverse of pixels_of(), a quarter of the size."""
    made = (pixel_values.double() * 127.5 + 127.5).round().to(torch.uint8)
    if not torch.equal((made.float() - 127.5) / 127.5, pixel_values.float()):
        raise SystemExit("these pixels were not made of bytes")
    return made


def keep_rows(stages, step):
    """The stages with every step-th row, and the step beside them as `row_step`."""
    kept = {name: value.flip(0)[::step].flip(0)
            if value.is_floating_point() and name != "pixel_values" else value
            for name, value in stages.items()}
    return {**kept, "row_step": torch.tensor([step])}


@contextlib.contextmanager
def unpacked(name, changes):
    """A folder that is kept as tests/golden/NAME.tar.xz; packed again if it changes."""
    archive = GOLDEN / f"{name}.tar.xz"
    with tempfile.TemporaryDirectory() as parent:
        with tarfile.open(archive) as packed:
            packed.extractall(parent, filter="data")
        yield pathlib.Path(parent) / name
        if changes:
            pack(pathlib.Path(parent) / name, archive)


def pack(folder, archive):
    """The same bytes for the same files: names in order, no owners, no times."""
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for file in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(f"{folder.name}/{file.name}")
            entry.size = file.stat().st_size
            packed.addfile(entry, io.BytesIO(file.read_bytes()))


# ---- tiny checkpoints ----------------------------------------------------------------------------


def make_tiny(results, options):
    """Stages and greedy ids of the random checkpoints, from the inputs in their golden files."""
    from safetensors.torch import load_file
    # The weights of tiny-fp8 are scaled up on purpose.
    for name, amplified in (("tiny-8b-like", 1), ("tiny-fp8", 50)):
        with unpacked(name, changes=not results.check) as folder:
            model = reference_model.load_model(folder, options.device)
            golden = load_file(folder / "stages-f32.safetensors")
            greedy = json.loads((folder / "greedy.json").read_text())
            inputs = reference_model.with_token_types(model, {
                "input_ids": golden["input_ids"].reshape(1, -1).to(options.device),
                "pixel_values": pixels_of(golden).to(options.device),
                "image_grid_thw": golden["image_grid_thw"].to(options.device)})
            stages = run_stages(model, inputs, last_logits_only=False)
            stages["pixel_values"] = bytes_of(stages["pixel_values"])
            results.tensors(folder / "stages-f32.safetensors", keep_rows(stages, TINY_ROW_STEP),
                            amplified)
            ids, _, gap = reference_model.greedy(model, inputs, len(greedy["greedy_ids"]))
            results.json(folder / "greedy.json", {**greedy, "greedy_ids": ids,
                                                  "smallest_top2_logit_gap": gap})


@torch.inference_mode()
def run_stages(model, inputs, last_logits_only):
    """All stages of one prompt, with the inputs and positions beside them."""
    stages = reference_model.Stages(model)
    logits = model(**inputs, use_cache=False).logits[0].float().cpu()
    tensors = stages.stop()
    position_ids, delta = reference_model.positions(model, inputs)
    tensors["logits.last" if last_logits_only else "logits"] = (
        logits[-1:] if last_logits_only else logits)
    tensors.update(input_ids=inputs["input_ids"][0].cpu(),
                   pixel_values=inputs["pixel_values"].float().cpu(),
                   image_grid_thw=inputs["image_grid_thw"].cpu(),
                   position_ids=position_ids.cpu(), rope_delta=delta.cpu())
    return tensors


# ---- the demo checkpoint -------------------------------------------------------------------------


class Demo:
    """The bundled checkpoint with its processor."""

    def __init__(self, options):
        from transformers import AutoProcessor
        self.processor = AutoProcessor.from_pretrained(DEMO_MODEL)
        self.model = reference_model.load_model(DEMO_MODEL, options.device)
        self.device = options.device
        generation = json.loads((DEMO_MODEL / "generation_config.json").read_text())
        self.stop_ids = generation["eos_token_id"]

    def inputs(self, messages):
        made = self.processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True,
            return_tensors="pt")
        return reference_model.with_token_types(
            self.model, {name: value.to(self.device) for name, value in made.items()})

    def about(self, picture, prompt):
        path = str(GOLDEN / "demo" / "pictures" / picture)
        return self.inputs([{"role": "user", "content": [
            {"type": "image", "image": path}, {"type": "text", "text": prompt}]}])

    def greedy(self, inputs, model=None):
        return reference_model.greedy(model or self.model, inputs, MAX_TOKENS, self.stop_ids)

    def text(self, ids):
        return self.processor.tokenizer.decode([i for i in ids if i not in self.stop_ids],
                                               skip_special_tokens=False)


def answer(demo, in_bf16, picture, prompt):
    inputs = demo.about(picture, prompt)
    ids, first_logits, gap = demo.greedy(inputs)
    other, _, _ = demo.greedy({name: value.to(torch.bfloat16) if value.is_floating_point()
                               else value for name, value in inputs.items()}, in_bf16)
    return {"prompt": prompt, "prompt_tokens": inputs["input_ids"].shape[1], "ids": ids,
            "text": demo.text(ids),
            "first_token_top5": reference_model.top_log_probs(first_logits, 5),
            "smallest_top2_logit_gap": round(gap, 5), "same_in_bf16": other == ids}


def excuse_near_ties(results, golden, made):
    """In a check: answers that part where the golden gap is tiny, and BF16's own luck, which
    depends on the machine, are reported and not counted."""
    for first, second in zip(golden, made):
        for old, new in zip(first["answers"], second["answers"]):
            if old["same_in_bf16"] != new["same_in_bf16"]:
                print(f"note: {first['file']}, {old['prompt']!r}: same_in_bf16 is "
                      f"{new['same_in_bf16']} here")
                new["same_in_bf16"] = old["same_in_bf16"]
            if old["ids"] != new["ids"] and old["smallest_top2_logit_gap"] < NEAR_TIE:
                print(f"note: {first['file']}, {old['prompt']!r}: another answer after a gap of "
                      f"{old['smallest_top2_logit_gap']}")
                new.update(old)


def make_demo(results, options):
    demo = Demo(options)
    in_bf16 = reference_model.load_model(DEMO_MODEL, options.device, torch.bfloat16)
    path = GOLDEN / "demo" / "answers.json"
    golden = json.loads(path.read_text(encoding="utf-8"))
    made = []
    for entry in golden:
        prompts = [old["prompt"] for old in entry["answers"]]
        inputs = demo.about(entry["file"], prompts[0])
        made.append({"file": entry["file"],
                     "answers": [answer(demo, in_bf16, entry["file"], prompt)
                                 for prompt in prompts],
                     "grid_thw": inputs["image_grid_thw"].tolist()
                     if isinstance(entry["grid_thw"][0], list)
                     else inputs["image_grid_thw"][0].tolist(),
                     "prompt_ids": inputs["input_ids"][0].tolist()})
        print(f"{entry['file']}: {made[-1]['answers'][0]['text']}", flush=True)
    if results.check:
        excuse_near_ties(results, golden, made)
    results.json(path, made)
    make_two_images(results, demo)
    # The pixels are those of the picture file: tests prepare it themselves.
    stages = run_stages(demo.model, demo.about(STAGES_PICTURE, STAGES_PROMPT),
                        last_logits_only=True)
    del stages["pixel_values"]
    results.tensors(GOLDEN / "demo" / "stages-f32.safetensors", keep_rows(stages, DEMO_ROW_STEP))


def make_two_images(results, demo):
    """Two pictures, two turns and a system message."""
    path = GOLDEN / "demo" / "two-images.json"
    golden = json.loads(path.read_text(encoding="utf-8"))
    messages = json.loads(json.dumps(golden["messages"]))
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = str(GOLDEN / "demo" / "pictures" / part["image"])
    inputs = demo.inputs(messages)
    position_ids, delta = reference_model.positions(demo.model, inputs)
    ids, _, _ = demo.greedy(inputs)
    results.json(path, {"messages": golden["messages"],
                        "input_ids": inputs["input_ids"][0].tolist(),
                        "position_ids": position_ids.tolist(), "rope_delta": delta.item(),
                        "answer_ids": ids, "answer": demo.text(ids)})


# ---- pictures ------------------------------------------------------------------------------------


def resized_rgb(pixel_values, grid):
    """The bytes that were normalised and cut into patches, as [height, width, 3] uint8."""
    frames, rows, columns = grid
    values = (pixel_values.double() * 127.5 + 127.5).round().to(torch.uint8)
    cells = values.view(frames, rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)[0, ..., 0, :, :]
    # [cell row, cell column, row, column, channel, y, x]
    return cells.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * 16, columns * 16, 3).contiguous()


def prepare_picture(processor, path):
    """What expected.json says of one file."""
    from transformers.image_utils import load_image
    try:
        made = processor(images=[load_image(str(path))], return_tensors="pt")
    except ValueError as error:
        return {"file": path.name, "error": str(error)}
    grid = made["image_grid_thw"][0].tolist()
    pixels = resized_rgb(made["pixel_values"], grid)
    return {"file": path.name, "grid_thw": grid, "tokens": grid[0] * grid[1] * grid[2] // 4,
            "sha256_of_resized_rgb": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
            "mean": round(pixels.double().mean().item(), 4)}


def make_preprocess(results, _options):
    import transformers
    # Its name lost the suffix in later releases.
    processor_class = getattr(transformers, "Qwen2VLImageProcessorFast", None) or \
        transformers.Qwen2VLImageProcessor
    path = GOLDEN / "preprocess" / "expected.json"
    golden = json.loads(path.read_text(encoding="utf-8"))
    processor = processor_class(patch_size=16, temporal_patch_size=2, merge_size=2,
                                image_mean=[0.5] * 3, image_std=[0.5] * 3, size=golden["size"])
    made = []
    with tempfile.TemporaryDirectory() as parent:
        with tarfile.open(GOLDEN / "uncompressed-pictures.tar.xz") as packed:
            packed.extractall(parent)
        folders = [GOLDEN / "preprocess" / "files", SHARED / "preprocess" / "files",
                   pathlib.Path(parent) / "uncompressed-pictures"]
        for entry in golden["files"]:
            file = next((folder / entry["file"] for folder in folders
                         if (folder / entry["file"]).exists()), None)
            if file is None:
                print(f"{entry['file']} is not here: not made anew")
                made.append(entry)
            else:
                made.append(prepare_picture(processor, file))
    results.json(path, {"size": golden["size"], "files": made}, indent=1)


# ---- templates and tokenizer ---------------------------------------------------------------------


def make_template(results, options):
    """Conversations through chat templates, by Jinja2 with the extensions transformers has."""
    from transformers.utils.chat_template_utils import render_jinja_template
    path = GOLDEN / "template" / "cases.json"
    cases = json.loads(path.read_text(encoding="utf-8"))
    templates = {"instruct": options.instruct, "thinking": options.thinking}
    for name, file in templates.items():
        if file is None:
            print(f"no --{name} template given: its renderings stay as they are")
            continue
        template = file.read_text(encoding="utf-8")
        for case in cases:
            settings = {key: case[key] for key in ("add_vision_id",) if key in case}
            rendered, _ = render_jinja_template(
                [case["messages"]], tools=case.get("tools"), chat_template=template,
                add_generation_prompt=case.get("add_generation_prompt", False), **settings)
            case[name] = rendered[0]
    results.json(path, cases)


def make_tokenizer(results, options):
    from tokenizers import Tokenizer
    path = GOLDEN / "tokenizer" / "vectors.json"
    with unpacked("qwen-tokenizer", changes=False) as folder:
        tokenizer = Tokenizer.from_file(str(options.tokenizer or folder / "tokenizer.json"))
    made = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        ids = tokenizer.encode(entry["text"], add_special_tokens=False).ids
        made.append({**entry, "ids": ids,
                     "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    results.json(path, made)


def main():
    makers = {"tiny": make_tiny, "demo": make_demo, "preprocess": make_preprocess,
              "template": make_template, "tokenizer": make_tokenizer}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=[*makers, "all"])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="another tokenizer.json than the stored one")
    parser.add_argument("--instruct", type=pathlib.Path, help="Qwen3-VL Instruct's chat template")
    parser.add_argument("--thinking", type=pathlib.Path, help="Qwen3-VL Thinking's chat template")
    options = parser.parse_args()
    reference_model.exact_arithmetic()
    results = Results(options.check, options.tolerance)
    for name, maker in makers.items():
        if name in options.what or "all" in options.what:
            print(f"---- {name}", flush=True)
            maker(results, options)
    if options.check:
        print(f"{results.num_differences} differences")
    return 1 if results.num_differences else 0


if __name__ == "__main__":
    sys.exit(main())
