"""A cut encoder learns what the uncut one hears, on lessons that never sound the same twice.

    lesson -> speed, gain, noise, room, microphone -> mel
    mel -> uncut and cut encoder, both at that window, and the decoder after each
    loss = distance of the output + LAYER_WEIGHT * mean distance of the layers + word_weight * KL(uncut || cut)
    distance = |cut - uncut|^2 / |uncut - mean|^2

The uncut one is the original after it was healed for short windows: it listens to the changed audio itself, so no 30 s
have to be computed. The factors and norms themselves are trained, not adapters of them. Words alone overfit here, as
hundreds of numbers a frame teach more than a token now and then; frames alone treat all of a frame alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisperfold.compiler.basis_adam import BasisAdam
from whisperfold.compiler.input_moments import measure_inputs
from whisperfold.compiler.lesson_training import LessonTraining, Progress, train_on_lessons
from whisperfold.compiler.losses import TIMED_SHARE, Batch, decoder_hidden, log_probabilities, make_batch, mean_kl
from whisperfold.compiler.rooms import Rooms, place
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.whisper import Encoder, Whisper
from whisperfold.runtime.augment import Augmentation, augment

LAYER_WEIGHT = 0.5
"""Of the layers' mean distance beside the output's."""
TAIL_S = (0.2, 1.2)
"""Silence after the speech, seconds."""
BASIS_LESSONS = 40
"""Lessons from which the inputs of every matrix are known (basis_adam.py)."""


@dataclass(frozen=True)
class FramesConfig(LessonTraining):
    """How long and how hard the frames are learned."""

    epochs: float = 2.0
    batch_s: float = 24.0
    learning_rate: float = 3e-5
    """Peak; 1e-4 undoes what refit.py solved, in the first steps."""
    word_weight: float = 1.0
    """Weight of the words' KL beside the frames' distance."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation((0.85, 1.18), noise_snr_db=(3.0, 40.0)))
    """Harder than an enrollment's: both models hear the same, and the more it varies, the longer it teaches."""
    rooms: Rooms = field(default_factory=Rooms)


def learn_frames(
    uncut: Whisper,
    cut: Whisper,
    lessons: list[Lesson],
    tokens: dict[str, Any],
    config: FramesConfig,
    checkpoint: Path,
    *,
    full_window: bool = False,
    report: Progress = lambda facts: None,
) -> None:
    """Train the encoder layers of cut, in place.

    Args:
        uncut: healed for the window; unchanged.
        cut: the same model with narrower encoder layers.
        lessons: speech, and the words at which the two are compared.
        tokens: the checkpoint's special tokens.
        config: epochs, rate, augmentation, rooms.
        checkpoint: file to save to and to resume from.
        full_window: learn at 30 s instead of short windows.
        report: called after each step with step, steps, loss_output, loss_layers, loss_kl and, now and then,
            loss_silence.
    """
    trainable = [p for part in (*cut.encoder.layers, cut.encoder.ln) for p in part.parameters()]
    cut.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    optimizer = BasisAdam(trainable, dict(_second_moments(cut, lessons, full_window)), config.learning_rate)

    def losses(batch: list[Lesson], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance of the frames and KL of the words, on one changed batch."""
        heard = _change(batch, config, rng, cut.dims.n_mels, tokens["eot"], full_window)
        with torch.no_grad():
            expected = hidden_states(uncut.encoder, heard.mel)
            said = _words(uncut, expected[-1], heard)
        found = hidden_states(cut.encoder, heard.mel)
        distances = [_distance(*pair) for pair in zip(found, expected, strict=True)]
        layers, kl = torch.stack(distances[:-1]).mean(), mean_kl(said, _words(cut, found[-1], heard))
        loss = distances[-1] + LAYER_WEIGHT * layers + config.word_weight * kl
        return loss, {"loss_output": distances[-1], "loss_layers": layers, "loss_kl": kl}

    train_on_lessons(cut, optimizer, losses, lessons, tokens, config, checkpoint, full_window, report)
    cut.requires_grad_(False)


def _second_moments(
    cut: Whisper, lessons: list[Lesson], full_window: bool
) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
    """Yield every matrix of the encoder's layers with the second moment of its inputs."""
    chosen = lessons[:: max(1, len(lessons) // BASIS_LESSONS)][:BASIS_LESSONS]
    for name, moment in measure_inputs(cut, chosen, "full" if full_window else "short", TAIL_S[0]).items():
        yield cut.get_parameter(f"{name}.weight"), moment[:-1, :-1]


def _change(
    lessons: list[Lesson], config: FramesConfig, rng: np.random.Generator, n_mels: int, eot: int, full: bool
) -> Batch:
    """Return a batch of lessons that sound otherwise; some have their words between timestamps."""
    audio = [place(augment(lesson.samples, config.augmentation, rng), config.rooms, rng) for lesson in lessons]
    sequences = [lesson.sequences[rng.random() < TIMED_SHARE][0] for lesson in lessons]
    return make_batch(audio, sequences, n_mels, eot, rng.uniform(*TAIL_S), full)


def hidden_states(encoder: Encoder, mel: Tensor) -> list[Tensor]:
    """Return every layer's output and the encoder's, (batch, T, n_audio_state) each, of mel (batch, n_mels, frames)."""
    x = encoder.embed(mel)
    states = []
    for layer in encoder.layers:
        x = layer(x)
        states.append(x)
    return [*states, encoder.ln(x)]


def _words(model: Whisper, encoded: Tensor, batch: Batch) -> Tensor:
    """Return the log-probabilities (n, n_vocab) after every real token of a batch."""
    return log_probabilities(model.decoder.logits(decoder_hidden(model, encoded, batch)))


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    """Squared distance relative to the spread of what is expected; 1 is as bad as the mean frame."""
    spread = (expected - expected.mean((0, 1))).square().sum()
    return (found - expected).square().sum() / spread
