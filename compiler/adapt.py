"""Labelled recordings of one person -> LoRA on the healed model, with replay so that everybody else stays.

Every step takes a few recordings (cross-entropy of the transcript) and, now and then, a batch of the healing
lessons (losses.distillation). On the device runtime/adaptation.py does the like without torch, and without replay
unless asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from whisperfold.compiler.heal import TAIL_S, attach_adapters
from whisperfold.compiler.lesson_training import Progress
from whisperfold.compiler.losses import distillation, transcripts
from whisperfold.compiler.manifests import Item
from whisperfold.compiler.teacher import Lesson, prompt
from whisperfold.compiler.training import WARM_UP_SHARE, update
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError
from whisperfold.runtime.optimizer import schedule


@dataclass(frozen=True)
class AdaptConfig:
    """How hard to adapt to one speaker."""

    epochs: int = 8
    batch: int = 4
    """Recordings per step."""
    rank: int = 8
    learning_rate: float = 5e-4
    replay_share: float = 0.3
    """Share of the steps that also see a healing lesson."""


def adapt(
    model: Whisper,
    items: list[Item],
    lessons: list[Lesson],
    tokenizer: Tokenizer,
    tokens: dict[str, Any],
    config: AdaptConfig,
    *,
    seed: int = 0,
    full_window: bool = False,
    report: Progress = lambda facts: None,
) -> Whisper:
    """Train adapters in place on the items; they are left attached (see fold.py).

    Raises:
        CompileError: an item has no transcript.
    """
    missing = next((item for item in items if not item.text), None)
    if missing:
        raise CompileError(f"{missing.audio}: no transcript; every recording of --speaker needs its text")
    torch.manual_seed(seed)
    start, eot = prompt(tokens), tokens["eot"]
    audio = [item.load() for item in items]
    texts = [tokenizer.encode(" " + str(item.text).strip(), add_special_tokens=False).ids for item in items]
    sequences = [torch.tensor([*start, *text, eot]) for text in texts]
    trainable = attach_adapters(model, config.rank)
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.01)
    per_epoch = -(-len(items) // config.batch)
    for step in range(config.epochs * per_epoch):
        rng = np.random.default_rng((seed, step))
        order = np.random.default_rng((seed, step // per_epoch)).permutation(len(items))
        chosen = order[step % per_epoch * config.batch :][: config.batch]
        loss = transcripts(
            model,
            [audio[i] for i in chosen],
            [sequences[i] for i in chosen],
            len(start),
            eot,
            rng.uniform(*TAIL_S),
            full_window,
        )
        facts = {
            "step": step,
            "steps": config.epochs * per_epoch,
            "loss_text": float(loss.detach()),
        }
        if lessons and rng.random() < config.replay_share:
            replayed = [lessons[i] for i in rng.choice(len(lessons), min(4, len(lessons)), replace=False)]
            kl, _ = distillation(model, replayed, rng, eot, TAIL_S, full_window)
            loss = loss + kl
            facts["loss_kl"] = float(kl.detach())
        rate = config.learning_rate * schedule(step, config.epochs * per_epoch, WARM_UP_SHARE)
        update(loss, optimizer, rate)
        report(facts)
    return model.eval()
