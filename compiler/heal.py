"""A model, cut or not -> one that says at a short window what the original says at 30 s.

End to end: adapters (LoRA unless told otherwise) on every projection of encoder and decoder, losses.distillation on
random windows, with losses.silence so that noise gives no text. A cut encoder has learned frames.py before.

Every random choice of a step comes from (seed, step), so a run resumed from its checkpoint is the run it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whisperfold.compiler.adapters import add_adapters
from whisperfold.compiler.losses import distillation, silence
from whisperfold.compiler.teacher import Lesson
from whisperfold.compiler.training import resume, save_checkpoint, schedule, update
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.audio import SAMPLE_RATE

TARGETS = re.compile(r".*\.layers\.\d+\..*\.(q|k|v|out|fc1|fc2)(\.down|\.up)?")
"""The linear layers that get an adapter: every projection of every layer, or its two factors; encoder and decoder."""
TAIL_S = (0.2, 1.2)
"""Silence after the speech while healing, seconds."""
SAVE_EVERY = 50
"""Steps between checkpoints."""
Progress = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class HealConfig:
    """How long and how hard to heal."""

    epochs: float = 4.0
    """Passes over the lessons, end to end."""
    batch_s: float = 64.0
    """Audio per step, seconds."""
    adapter: str = "lora"
    """What is trained end to end: "lora", "dora" or "vera" (adapters.py)."""
    rank: int = 32
    """Rank of the adapters; alpha is twice that."""
    learning_rate: float = 5e-4
    frame_weight: float = 0.5
    """Weight of the encoder frames' distance beside the KL."""
    silence_weight: float = 0.2
    silence_every: int = 4
    """A few clips without speech every so many steps."""
    seed: int = 0


def batches(lessons: list[Lesson], batch_s: float, seed: int) -> Iterator[list[int]]:
    """Yield one epoch of lesson indices: shuffled, of similar length, about batch_s seconds (padded) each."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lessons)).tolist()
    found: list[list[int]] = []
    for begin in range(0, len(order), 64):
        batch: list[int] = []
        for i in sorted(order[begin : begin + 64], key=lambda i: len(lessons[i].samples)):
            padded_s = len(lessons[i].samples) / SAMPLE_RATE * (len(batch) + 1)
            if batch and padded_s > batch_s:
                found.append(batch)
                batch = []
            batch.append(i)
        found.append(batch)
    yield from (found[i] for i in rng.permutation(len(found)))


def attach_adapters(model: Whisper, rank: int, kind: str = "lora") -> list[torch.nn.Parameter]:
    """Freeze the model, add an adapter to every projection, return the trainable parameters."""
    model.requires_grad_(False)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    add_adapters(model, kind, rank, [name for name in linear if TARGETS.fullmatch(name)])
    return [p for p in model.parameters() if p.requires_grad]


def heal(
    model: Whisper,
    lessons: list[Lesson],
    tokens: dict[str, Any],
    config: HealConfig,
    checkpoint: Path,
    *,
    full_window: bool = False,
    embedding: torch.Tensor | None = None,
    report: Progress = lambda facts: None,
) -> Whisper:
    """Train adapters on the model, in place; they are left attached (see fold.py).

    Args:
        model: cut or not.
        lessons: what the original said.
        tokens: the checkpoint's special tokens.
        config: epochs, rank, rates.
        checkpoint: file to save to and to resume from.
        full_window: heal at 30 s instead of short windows.
        embedding: the original's token embedding, where the model's own is quantised already.
        report: called after each step with step, steps, loss_kl, loss_hidden, loss_silence, lr.
    """
    torch.manual_seed(config.seed)
    trainable = attach_adapters(model, config.rank, config.adapter)
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.0)
    per_epoch = len(list(batches(lessons, config.batch_s, config.seed)))
    total = round(config.epochs * per_epoch)
    first = resume(checkpoint, trainable, optimizer)
    epoch, plan = -1, []
    for step in range(first, total):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            plan = list(batches(lessons, config.batch_s, config.seed + epoch))
        chosen = plan[(step % per_epoch) % len(plan)]
        rng = np.random.default_rng((config.seed, step))
        batch, eot = [lessons[i] for i in chosen], tokens["eot"]
        kl, frames = distillation(model, batch, rng, eot, TAIL_S, full_window, embedding)
        loss = kl + config.frame_weight * frames
        facts = {
            "step": step,
            "steps": total,
            "loss_kl": float(kl.detach()),
            "loss_hidden": float(frames.detach()),
        }
        if step % config.silence_every == 0:
            quiet = silence(model, rng, tokens, 4, full_window)
            loss = loss + config.silence_weight * quiet
            facts["loss_silence"] = float(quiet.detach())
        update(loss, trainable, optimizer, config.learning_rate * schedule(step, total))
        report(facts)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == total:
            save_checkpoint(checkpoint, step + 1, trainable, optimizer)
    return model.eval()
