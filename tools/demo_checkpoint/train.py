"""Trains the demo checkpoint on random scenes. Needs torch, transformers, tokenizers and a GPU.

usage: train.py --sprites sprites.npz --work FOLDER --seconds 5400 [--total 5400]

Resumable: each run continues from the state in --work and stops after --seconds; --total is the
training time of all runs together, over which the learning rate falls.
"""

import argparse
import math
import pathlib
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

import batches
import network
import sprites
import tokenizer as tokens

WARM_UP_STEPS = 400
CONSTANT_SHARE = 0.15   # of the time at the full rate before it falls
FINAL_RATE = 0.02       # share of the full rate at the end
CELL_LOSS_WEIGHT = 0.5


def learning_rate(peak, step, share_done):
    """Warm-up by steps, constant, then a cosine by the share of the training time."""
    falling = max(0.0, share_done - CONSTANT_SHARE) / (1 - CONSTANT_SHARE)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))
    return peak * min(1, (step + 1) / WARM_UP_STEPS) * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


class Trainer:
    """The model, a head that names what each picture token shows (it speeds up learning to see and
    is not exported), the optimizer, and their state on disk."""

    def __init__(self, work, sprites_file, device="cuda", peak_rate=1.2e-3, compile_blocks=True):
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.device, self.peak_rate = work, device, peak_rate
        self.catalogue, styles, masks = sprites.load_pack(sprites_file)
        if not (work / "tokenizer.json").exists():
            tokens.learn(self.catalogue).save(str(work / "tokenizer.json"))
        self.encoder = tokens.Encoder(Tokenizer.from_file(str(work / "tokenizer.json")))
        self.painter = batches.Painter(styles, masks, device)
        torch.manual_seed(0)
        self.config = network.make_config(self.encoder.special)
        self.model = Qwen3VLForConditionalGeneration(self.config).to(device).float()
        num_classes = len(self.catalogue.names) + 2  # and background, and text
        self.cell_head = torch.nn.Linear(network.HIDDEN, num_classes).to(device)
        self.training_pass = network.TrainingPass(self.model, self.encoder.prefix, compile_blocks)
        self.optimizer = self.make_optimizer()
        self.seconds, self.step = 0.0, 0
        if (work / "state.pt").exists():
            state = torch.load(work / "state.pt", map_location=device)
            self.model.load_state_dict(state["model"])
            self.cell_head.load_state_dict(state["cell_head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seconds, self.step = state["seconds"], state["step"]

    def make_optimizer(self):
        parameters = [*self.model.parameters(), *self.cell_head.parameters()]
        groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
                  {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.peak_rate, betas=(0.9, 0.98))

    def save(self):
        torch.save({"model": self.model.state_dict(), "cell_head": self.cell_head.state_dict(),
                    "optimizer": self.optimizer.state_dict(), "seconds": self.seconds,
                    "step": self.step}, self.work / "state.pt")

    def losses(self, batch):
        """Cross entropy of the answers' tokens, and of what the picture tokens show."""
        with torch.no_grad():
            images = self.painter.paint(batch, noise=True)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            hidden, pictures = self.training_pass.forward(images, batch.ids)
            logits = self.training_pass.logits(hidden[:, :-1])
            text = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels[:, 1:].flatten(),
                                   ignore_index=batches.IGNORED)
            cells = F.cross_entropy(self.cell_head(pictures).flatten(0, 1).float(),
                                    batch.cells.flatten())
        return text, cells

    def train_step(self, batch, share_done):
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.peak_rate, self.step, share_done)
        text, cells = self.losses(batch.to(self.device))
        (text + CELL_LOSS_WEIGHT * cells).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return text.detach(), cells.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--total", type=float, help="default: --seconds")
    parser.add_argument("--patches", type=int, default=131072, help="patches of one batch")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--workers", type=int, default=14)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(options.work, options.sprites, peak_rate=options.learning_rate)
    loader = iter(torch.utils.data.DataLoader(
        batches.SceneBatches(trainer.catalogue, trainer.encoder, options.patches), batch_size=None,
        num_workers=options.workers, prefetch_factor=4))
    begin = last = time.time()
    before, recent = trainer.seconds, []
    while (now := time.time()) - begin < options.seconds:
        trainer.seconds = before + now - begin
        recent.append(trainer.train_step(next(loader),
                                         trainer.seconds / (options.total or options.seconds)))
        if now - last > 15:
            text, cells = torch.tensor(recent).mean(0).tolist()
            print(f"{trainer.seconds:.0f} s, step {trainer.step}: text {text:.4f}, "
                  f"cells {cells:.4f}", flush=True)
            last, recent = now, []
    trainer.save()


if __name__ == "__main__":
    main()
