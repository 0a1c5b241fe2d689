"""A cut encoder learns what the uncut one computes, frame by frame, on speech that never sounds the same twice.

    audio -> crop, speed, gain, noise, silence -> mel -> uncut and cut encoder, both at that window
    loss = distance of the output + LAYER_WEIGHT * mean distance of the layers
    distance = |cut - uncut|^2 / |uncut - mean|^2

The uncut one is the original after it was healed for short windows, so no 30 s have to be computed and no transcript is
needed: every step may change the audio. The factors and norms themselves are trained, not adapters of them. Words alone
overfit here: hundreds of numbers a frame teach more than a token now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whisperfold.compiler.calibrate import short_window
from whisperfold.compiler.teacher import mel_window
from whisperfold.compiler.training import resume, save_checkpoint, schedule, update
from whisperfold.compiler.utterances import non_speech
from whisperfold.models.whisper import Encoder, Whisper
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.augment import Augmentation, augment

LAYER_WEIGHT = 0.5
"""Of the layers' mean distance beside the output's."""
CROP_S = (1.5, 12.0)
"""Lengths of the crops; all crops of a step are equally long."""
TAIL_S = (0.0, 1.2)
NON_SPEECH_SHARE = 0.05


@dataclass(frozen=True)
class FramesConfig:
    """How long and how hard the frames are learned."""

    steps: int = 1500
    batch_s: float = 48.0
    """Audio per step, seconds."""
    learning_rate: float = 1.5e-4
    """Peak; 3e-4 undoes what refit.py solved, in the first steps."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0


def learn_frames(
    uncut: Whisper,
    cut: Whisper,
    audio: Sequence[np.ndarray],
    config: FramesConfig,
    checkpoint: Path,
    report: Callable[[dict[str, float]], None] = lambda facts: None,
) -> None:
    """Train the encoder layers of cut, in place.

    Args:
        uncut: healed for short windows; unchanged.
        cut: the same model with narrower encoder layers.
        audio: float32 (n,), mono, 16 kHz, each.
        config: steps, rate, augmentation.
        checkpoint: file to save to and to resume from.
        report: called after each step with step, steps, loss_output, loss_layers.
    """
    trainable = [p for layer in (*cut.encoder.layers, cut.encoder.ln) for p in layer.parameters()]
    cut.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.0)
    for step in range(resume(checkpoint, trainable, optimizer), config.steps):
        mel = crops(audio, config, np.random.default_rng((config.seed, step)), cut.dims.n_mels)
        with torch.no_grad():
            expected = hidden_states(uncut.encoder, mel)
        found = hidden_states(cut.encoder, mel)
        distances = [_distance(*pair) for pair in zip(found, expected, strict=True)]
        layers = torch.stack(distances[:-1]).mean()
        rate = config.learning_rate * schedule(step, config.steps)
        update(distances[-1] + LAYER_WEIGHT * layers, trainable, optimizer, rate)
        facts = {"loss_output": float(distances[-1].detach()), "loss_layers": float(layers.detach())}
        report({"step": step, "steps": config.steps, **facts})
        save_checkpoint(checkpoint, step + 1, config.steps, trainable, optimizer)
    cut.requires_grad_(False)


def hidden_states(encoder: Encoder, mel: Tensor) -> list[Tensor]:
    """Return every layer's output and the encoder's, (batch, T, n_audio_state) each, of mel (batch, n_mels, frames)."""
    x = encoder.embed(mel)
    states = []
    for layer in encoder.layers:
        x = layer(x)
        states.append(x)
    return [*states, encoder.ln(x)]


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    """Squared distance relative to the spread of what is expected; 1 is as bad as the mean frame."""
    spread = (expected - expected.mean((0, 1))).square().sum()
    return (found - expected).square().sum() / spread


def crops(audio: Sequence[np.ndarray], config: FramesConfig, rng: np.random.Generator, n_mels: int) -> Tensor:
    """Draw crops of one length and return their mels (batch, n_mels, frames)."""
    crop_s = rng.uniform(*CROP_S)
    n_samples = short_window(crop_s, rng.uniform(*TAIL_S))
    n_crop = round(crop_s * SAMPLE_RATE)
    clips = []
    for _ in range(max(1, round(config.batch_s / crop_s))):
        samples = non_speech(rng) if rng.random() < NON_SPEECH_SHARE else audio[int(rng.integers(len(audio)))]
        begin = int(rng.integers(max(1, samples.size - n_crop)))
        clips.append(augment(samples[begin : begin + n_crop], config.augmentation, rng)[:n_samples])
    return torch.stack([mel_window(samples, n_samples, n_mels) for samples in clips])
