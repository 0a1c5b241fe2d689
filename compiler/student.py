"""The original with a few of its decoder layers, taught to say what all of them say: a student as Distil-Whisper's.

    decoder layers 0 and 5 of 6, everything else whole -> student         Gandhi et al., arXiv 2311.00430
    loss = 0.8 KL(original || student) + cross-entropy of the original's own words + silence

Whole weights are trained, not adapters: all of the decoder but the token embedding, which also gives the original's
logits back. The encoder is shared and frozen, so no gradient goes through it and no frames are learned.

The student hears the bundle's window, not 30 s first. Its lessons are the original's at 30 s either way, a short step
costs a third, noise asks the encoder anew anyway, and the window stage that follows, which heals encoder and decoder
together, starts from a decoder that has met short windows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whisperfold.compiler.heal import TAIL_S
from whisperfold.compiler.lesson_training import LessonTraining, Progress, train_on_lessons
from whisperfold.compiler.losses import heard, log_probabilities, make_batch, mean_kl, student_hidden
from whisperfold.compiler.teacher import Lesson, prompt
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import ConfigError


@dataclass(frozen=True)
class StudentConfig(LessonTraining):
    """How small the student's decoder is, how long and how hard it is taught."""

    epochs: float = 6.0
    learning_rate: float = 3e-4
    """Peak; at 1e-3 base's loss first rises and stays three times as high."""
    decoder_layers: int = 0
    """How many of the original's decoder layers stay, the first and the last among them; 0: all, no student."""
    kl_weight: float = 0.8
    """Of the KL from the original beside the cross-entropy of its words."""


def kept_decoder_layers(n: int, n_kept: int) -> list[int]:
    """Return which of n decoder layers stay: evenly spread, the last always, the first wherever two stay.

    Raises:
        ConfigError: there are not more layers than are to stay.
    """
    if not 1 <= n_kept < n:
        raise ConfigError(
            f"student.decoder_layers = {n_kept}: the original has {n}, expected 1 to {n - 1}; 0 makes no student"
        )
    return sorted(n - 1 - round(i * (n - 1) / max(1, n_kept - 1)) for i in range(n_kept))


def make_student(original: Checkpoint, n_layers: int) -> Checkpoint:
    """Return the checkpoint with so many of its decoder layers, untrained; what stays keeps its alignment heads.

    Where no alignment head stays, every head of the last layer is one.
    """
    kept = kept_decoder_layers(original.dims.n_text_layer, n_layers)
    state = {name: tensor for name, tensor in original.state.items() if not name.startswith("decoder.layers.")}
    for to, at in enumerate(kept):
        layer = f"decoder.layers.{at}."
        names = [name for name in original.state if name.startswith(layer)]
        state |= {f"decoder.layers.{to}.{name.removeprefix(layer)}": original.state[name] for name in names}
    heads = [[kept.index(layer), head] for layer, head in original.alignment_heads if layer in kept]
    return dataclasses.replace(
        original,
        name="distil-" + original.name.rsplit("/", 1)[-1],
        dims=dataclasses.replace(original.dims, n_text_layer=n_layers),
        state=state,
        alignment_heads=heads or [[n_layers - 1, head] for head in range(original.dims.n_text_head)],
        provenance=original.provenance
        | {"student": f"decoder layers {kept} of {original.dims.n_text_layer}, distilled by whisperfold"},
    )


def teach_student(
    student: Whisper,
    lessons: list[Lesson],
    tokens: dict[str, Any],
    config: StudentConfig,
    checkpoint: Path,
    *,
    full_window: bool = False,
    report: Progress = lambda facts: None,
) -> None:
    """Train the student's decoder, in place.

    Args:
        student: with fewer decoder layers than the original, whose lessons these are.
        lessons: what the original said.
        tokens: the checkpoint's special tokens.
        config: epochs, rate, weights.
        checkpoint: file to save to and to resume from.
        full_window: teach at 30 s instead of short windows.
        report: called after each step with step, steps, loss_kl, loss_words and, now and then, loss_silence.
    """
    student.requires_grad_(False)
    trainable = [p for name, p in student.decoder.named_parameters() if not name.startswith("token_embedding")]
    for parameter in trainable:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.0)

    def losses(batch: list[Lesson], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """KL from the original and cross-entropy of its words."""
        kl, words = _losses(student, batch, rng, tokens, full_window)
        return config.kl_weight * kl + words, {"loss_kl": kl, "loss_words": words}

    train_on_lessons(student, optimizer, losses, lessons, tokens, config, checkpoint, full_window, report)
    student.requires_grad_(False)


def _losses(
    student: Whisper, lessons: list[Lesson], rng: np.random.Generator, tokens: dict[str, Any], full: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean KL per token, and the cross-entropy of what the original said after the prompt."""
    audio, timed = heard(lessons, rng)
    sequences, hidden = zip(*(lesson.sequences[kind] for lesson, kind in zip(lessons, timed, strict=True)), strict=True)
    batch = make_batch(audio, list(sequences), student.dims.n_mels, tokens["eot"], rng.uniform(*TAIL_S), full)
    found = log_probabilities(student.decoder.logits(student_hidden(student, batch)[1]))
    with torch.no_grad():
        expected = log_probabilities(student.decoder.logits(torch.cat([states.float() for states in hidden])))
    said = [
        torch.arange(1, len(sequence)) >= len(prompt(tokens, timestamps=kind))
        for sequence, kind in zip(sequences, timed, strict=True)
    ]
    labels, judged = torch.cat([sequence[1:] for sequence in sequences]), torch.cat(said)
    return mean_kl(expected, found), F.nll_loss(found[judged], labels[judged])
