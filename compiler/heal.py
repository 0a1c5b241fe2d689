"""A model, cut or not -> one that says at a short window what the original says at 30 s.

End to end: adapters (LoRA unless told otherwise) on every projection of encoder and decoder, losses.distillation on
random windows, with losses.silence so that noise gives no text. A cut encoder has learned frames.py before.

The loop is lesson_training.py's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisperfold.compiler.adapters import add_adapters
from whisperfold.compiler.lesson_training import LessonTraining, Progress, train_on_lessons
from whisperfold.compiler.losses import distillation
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.whisper import Whisper

TARGETS = re.compile(r".*\.layers\.\d+\..*\.(q|k|v|out|fc1|fc2)(\.down|\.up)?")
"""The linear layers that get an adapter: every projection of every layer, or its two factors; encoder and decoder."""
TAIL_S = (0.2, 1.2)
"""Silence after the speech while healing, seconds."""


@dataclass(frozen=True)
class HealConfig(LessonTraining):
    """How long and how hard to heal."""

    adapter: str = "lora"
    """What is trained end to end: "lora", "dora" or "vera" (adapters.py)."""
    rank: int = 32
    """Rank of the adapters; alpha is twice that."""
    frame_weight: float = 0.5
    """Weight of the encoder frames' distance beside the KL."""


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
        report: called after each step with step, steps, loss_kl, loss_hidden and, now and then, loss_silence.
    """
    torch.manual_seed(config.seed)
    trainable = attach_adapters(model, config.rank, config.adapter)
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.0)

    def losses(batch: list[Lesson], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """KL of the words and distance of the frames."""
        kl, frames = distillation(model, batch, rng, tokens["eot"], TAIL_S, full_window, embedding)
        return kl + config.frame_weight * frames, {"loss_kl": kl, "loss_hidden": frames}

    train_on_lessons(model, optimizer, losses, lessons, tokens, config, checkpoint, full_window, report)
    return model.eval()
