"""Training on lessons, for frames.py, heal.py, student.py: batches of like length, silence now and then, checkpoints.

Every random choice of a step comes from (seed, step), so a run resumed from its checkpoint is the run it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisperfold.compiler.losses import silence
from whisperfold.compiler.teacher import Lesson
from whisperfold.compiler.training import WARM_UP_SHARE, resume, save_checkpoint, update
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.optimizer import schedule

Progress = Callable[[dict[str, float]], None]
Losses = Callable[[list[Lesson], np.random.Generator], tuple[Tensor, dict[str, Tensor]]]
"""A batch -> what is minimised, and its parts by the names that are reported."""


@dataclass(frozen=True)
class LessonTraining:
    """How long and how hard to train."""

    epochs: float = 4.0
    """Passes over the lessons."""
    batch_s: float = 64.0
    """Audio per step, seconds."""
    learning_rate: float = 5e-4
    """Peak."""
    silence_weight: float = 0.2
    silence_every: int = 4
    """A few clips without speech every so many steps."""
    seed: int = 0
    bfloat16: bool = True
    """Multiply matrices in bfloat16 where the CPU can: twice the steps in the same time. Weights stay float32."""


def has_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 itself (AVX-512 BF16, AMX); others only convert, and are slower so."""
    # The oldest torch that we take cannot tell.
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


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


def train_on_lessons(
    model: Whisper,
    optimizer: torch.optim.Optimizer,
    losses: Losses,
    lessons: list[Lesson],
    tokens: dict[str, Any],
    config: LessonTraining,
    checkpoint: Path,
    full_window: bool,
    report: Progress,
) -> None:
    """Train some parameters of a model, in place.

    Args:
        model: that hears silence beside the losses.
        optimizer: of its parameters that change.
        losses: of a batch.
        lessons: what the original said.
        tokens: the checkpoint's special tokens.
        config: epochs, rate, silence.
        checkpoint: file to save to and to resume from.
        full_window: train at 30 s instead of short windows.
        report: called after each step with step, steps, the losses' parts and, now and then, loss_silence.
    """
    per_epoch = len(list(batches(lessons, config.batch_s, config.seed)))
    total = round(config.epochs * per_epoch)
    epoch, plan = -1, []
    for step in range(resume(checkpoint, optimizer), total):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            plan = list(batches(lessons, config.batch_s, config.seed + epoch))
        rng = np.random.default_rng((config.seed, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16 and has_bfloat16()):
            loss, parts = losses([lessons[i] for i in plan[(step % per_epoch) % len(plan)]], rng)
            if step % config.silence_every == 0:
                parts["loss_silence"] = silence(model, rng, tokens, 4, full_window)
                loss = loss + config.silence_weight * parts["loss_silence"]
        update(loss, optimizer, config.learning_rate * schedule(step, total, WARM_UP_SHARE))
        report({"step": step, "steps": total} | {name: float(part.detach()) for name, part in parts.items()})
        save_checkpoint(checkpoint, step + 1, total, optimizer)
