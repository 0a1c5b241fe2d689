"""A cut encoder's output projections, solved anew layer by layer, on what the cut encoder itself computes.

    for every layer:   W_out, then fc2 = argmin |stream of the uncut - (stream of the cut + W features)|^2

The closed-form cuts (factorize.py) take every layer's inputs to be the uncut model's. Here a projection sees the inputs
that the cut layers before it really give, and is asked for what the uncut stream has at the same place: so it mends
their errors too, as far as a linear map can. No gradients, no rate: one pass over random crops of some speech, at
another speed and level and in some noise. Weights are drawn to what they were by a ridge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisperfold.compiler.calibrate import short_window
from whisperfold.compiler.teacher import mel_window
from whisperfold.compiler.utterances import non_speech
from whisperfold.models.low_rank import LowRankLinear
from whisperfold.models.whisper import EncoderLayer, Whisper
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.augment import Augmentation, augment

CROP_S = (1.5, 12.0)
"""Lengths of the crops; all crops of a batch are equally long."""
TAIL_S = (0.0, 1.2)
NON_SPEECH_SHARE = 0.05


@dataclass(frozen=True)
class RefitConfig:
    """How much speech the projections are solved on."""

    batches: int = 40
    """0 leaves the weights as they were cut."""
    batch_s: float = 48.0
    """Audio per batch, seconds."""
    ridge: float = 1e-4
    """Pull to the weights before, relative to the mean square of a feature."""
    augmentation: Augmentation = field(default_factory=Augmentation)


def crops(audio: Sequence[np.ndarray], config: RefitConfig, rng: np.random.Generator, n_mels: int) -> Tensor:
    """Draw crops of one length from float32 (n,) clips at 16 kHz and return their mels (batch, n_mels, frames)."""
    crop_s = rng.uniform(*CROP_S)
    n_samples = short_window(crop_s, rng.uniform(*TAIL_S))
    n_crop = round(crop_s * SAMPLE_RATE)
    clips = []
    for _ in range(max(1, round(config.batch_s / crop_s))):
        samples = non_speech(rng) if rng.random() < NON_SPEECH_SHARE else audio[int(rng.integers(len(audio)))]
        begin = int(rng.integers(max(1, samples.size - n_crop)))
        clips.append(augment(samples[begin : begin + n_crop], config.augmentation, rng)[:n_samples])
    return torch.stack([mel_window(samples, n_samples, n_mels) for samples in clips])


@torch.no_grad()
def refit(
    uncut: Whisper,
    cut: Whisper,
    mels: Sequence[Tensor],
    ridge: float = RefitConfig.ridge,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Solve the output projections of cut's encoder layers, in place.

    Args:
        uncut: its encoder may have a group of layers (nn.Sequential) where the cut one has a single layer.
        cut: the same model with narrower, factored or fewer encoder layers.
        mels: float32 (batch, n_mels, frames), each.
        ridge: see RefitConfig.
        advance: called after each layer.
    """
    expected = [uncut.encoder.embed(mel) for mel in mels]
    found = [cut.encoder.embed(mel) for mel in mels]
    for group, layer in zip(uncut.encoder.layers, cut.encoder.layers, strict=True):
        first, teacher = _last_of(group)
        expected = [first(x) for x in expected]
        middle = [x + teacher.attn.out(_attended(teacher, x)) for x in expected]
        _solve(layer.attn.out, partial(_attended, layer), found, middle, ridge)
        found = [x + layer.attn.out(_attended(layer, x)) for x in found]
        expected = [x + teacher.ffn(teacher.ffn_ln(x)) for x in middle]
        _solve(layer.ffn.fc2, partial(_neurons, layer), found, expected, ridge)
        found = [x + layer.ffn.fc2(_neurons(layer, x)) for x in found]
        advance()


def _last_of(group: nn.Module) -> tuple[Callable[[Tensor], Tensor], EncoderLayer]:
    """Return what comes before a group's last layer, and that layer; of a single one, nothing and itself."""
    if isinstance(group, nn.Sequential):
        return group[:-1], cast(EncoderLayer, group[-1])
    return nn.Identity(), cast(EncoderLayer, group)


def _attended(layer: EncoderLayer, x: Tensor) -> Tensor:
    y = layer.attn_ln(x)
    return layer.attn.attend(y, layer.attn.kv(y))


def _neurons(layer: EncoderLayer, x: Tensor) -> Tensor:
    return F.gelu(layer.ffn.fc1(layer.ffn_ln(x)))


def _solve(
    projection: nn.Module,
    features: Callable[[Tensor], Tensor],
    found: list[Tensor],
    expected: list[Tensor],
    ridge: float,
) -> None:
    """Set weight and bias of a projection so that stream + projection(features) is nearest to what is expected."""
    narrow: Callable[[Tensor], Tensor] = projection.down if isinstance(projection, LowRankLinear) else nn.Identity()
    linear = cast(nn.Linear, projection.up if isinstance(projection, LowRankLinear) else projection)
    n = linear.in_features + 1
    gram, products = torch.zeros(n, n).double(), torch.zeros(n, linear.out_features).double()
    for x, y in zip(found, expected, strict=True):
        inputs = narrow(features(x)).flatten(0, 1)
        missing = (y - x).flatten(0, 1) - linear(inputs)
        rows = F.pad(inputs, (0, 1), value=1.0)
        gram += (rows.T @ rows).double()
        products += (rows.T @ missing).double()
    gram += ridge * gram.diag().mean() * torch.eye(n).double()
    change = torch.linalg.solve(gram, products)
    linear.weight.add_(change[:-1].T)
    linear.bias.add_(change[-1])
