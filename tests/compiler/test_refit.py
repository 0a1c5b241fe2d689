"""The closed-form refit: the cut encoder comes nearer to the uncut one without a step of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from whisperfold.compiler.baselines import teacher_of
from whisperfold.compiler.budget import with_widths
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.factorize import cut_model
from whisperfold.compiler.frames import hidden_states
from whisperfold.compiler.refit import refit
from whisperfold.compiler.teacher import Lesson, mel_window
from whisperfold.models.dims import Widths
from whisperfold.models.low_rank import LowRankWidths, from_state, replace_matrices
from whisperfold.models.whisper import Whisper


@pytest.fixture
def mels(tiny_model: Whisper, lessons: list[Lesson]) -> list[Tensor]:
    """Log-mels (1, n_mels, frames) of every lesson."""
    return [mel_window(lesson.samples, len(lesson.samples), tiny_model.dims.n_mels)[None] for lesson in lessons]


@torch.no_grad()
def distance(uncut: Whisper, cut: Whisper, mel: Tensor) -> float:
    """Squared distance of the last layers' outputs, relative to the uncut one's spread."""
    expected, found = (hidden_states(model.encoder, mel)[-2] for model in (uncut, cut))
    return float((found - expected).square().sum() / (expected - expected.mean((0, 1))).square().sum())


def test_a_cut_encoder_comes_nearer_on_speech_it_was_not_solved_on(
    tiny_model: Whisper, moments: Moments, mels: list[Tensor]
) -> None:
    narrow = {f"encoder.{i}.{kind}": width for i in (0, 1) for kind, width in (("vo", 8), ("qk", 8), ("ffn", 32))}
    cut = cut_model(tiny_model, moments, with_widths(tiny_model.widths, narrow))
    before = {name: tensor.clone() for name, tensor in cut.state_dict().items()}
    distance_before = distance(tiny_model, cut, mels[-1])
    layers = []
    refit(tiny_model, cut, mels[:-1], ridge=1e-2, advance=lambda: layers.append(1))
    assert distance(tiny_model, cut, mels[-1]) < 0.8 * distance_before
    changed = {name for name, tensor in cut.state_dict().items() if not torch.equal(tensor, before[name])}
    projections = [f"encoder.layers.{i}.{matrix}" for i in (0, 1) for matrix in ("attn.out", "ffn.fc2")]
    assert changed == {f"{name}.{part}" for name in projections for part in ("weight", "bias")}
    assert len(layers) == 2


def test_an_uncut_encoder_stays_as_it_is(tiny_model: Whisper, mels: list[Tensor]) -> None:
    same = Whisper.from_state(tiny_model.dims, tiny_model.state_dict(), tiny_model.widths)
    refit(tiny_model, same, mels[:2])
    for name, tensor in tiny_model.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_factored_matrices_have_their_second_factor_solved(tiny_model: Whisper, mels: list[Tensor]) -> None:
    w = tiny_model.widths.encoder[0]
    ranks = LowRankWidths(w.qk, w.vo, w.ffn, q=0, k=0, v=0, out=8, fc1=0, fc2=8)
    cut = Whisper.from_state(tiny_model.dims, tiny_model.state_dict(), tiny_model.widths)
    for layer in cut.encoder.layers:
        linear = {"attn.out": layer.attn.out, "ffn.fc2": layer.ffn.fc2}
        replace_matrices(layer, ranks)
        for name, matrix in linear.items():
            u, s, vh = torch.linalg.svd(matrix.weight.detach(), full_matrices=False)
            factors = layer.get_submodule(name)
            factors.load_state_dict(
                {"down.weight": s[:8, None] * vh[:8], "up.weight": u[:, :8], "up.bias": matrix.bias.detach()}
            )
    before = distance(tiny_model, cut, mels[-1])
    refit(tiny_model, cut, mels[:-1], ridge=1e-2)
    assert distance(tiny_model, cut, mels[-1]) < 0.9 * before


def test_one_layer_learns_what_a_group_computes(tiny_model: Whisper, mels: list[Tensor]) -> None:
    kept = replace(tiny_model.widths, encoder=tiny_model.widths.encoder[-1:])
    state = {
        name.replace("encoder.layers.1.", "encoder.layers.0."): tensor
        for name, tensor in tiny_model.state_dict().items()
        if not name.startswith("encoder.layers.0.")
    }
    cut = from_state(tiny_model.dims, state, Widths(kept.encoder, kept.decoder))
    teacher = teacher_of(tiny_model, cut)
    before = distance(teacher, cut, mels[-1])
    refit(teacher, cut, mels[:-1], ridge=1e-2)
    assert distance(teacher, cut, mels[-1]) < 0.9 * before
