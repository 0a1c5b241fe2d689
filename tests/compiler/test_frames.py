"""Frames: the cut encoder comes nearer to the uncut one, on other speech too; a killed run goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_run import Report, check_a_killed_run_goes_on

from whisperfold.compiler.budget import with_widths
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.factorize import cut_model
from whisperfold.compiler.frames import FramesConfig, hidden_states, learn_frames
from whisperfold.compiler.teacher import Lesson, mel_window
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper

CONFIG = FramesConfig(epochs=2, batch_s=16.0, learning_rate=1e-3)


@pytest.fixture
def cut(tiny_model: Whisper, moments: Moments) -> Whisper:
    """A narrower model whose encoder is hurt as well: the closed-form cut of a random one loses little."""
    narrow = {f"encoder.{i}.{kind}": width for i in (0, 1) for kind, width in (("vo", 8), ("ffn", 64))}
    model = cut_model(tiny_model, moments, with_widths(tiny_model.widths, narrow))
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.ffn.fc2.weight += 0.3 * torch.randn_like(layer.ffn.fc2.weight)
    return model


def distance(uncut: Whisper, cut: Whisper, lesson: Lesson) -> float:
    """Relative distance of the encoders' outputs on a lesson."""
    mel = mel_window(lesson.samples, len(lesson.samples), uncut.dims.n_mels)[None]
    expected, found = (hidden_states(model.encoder, mel)[-1] for model in (uncut, cut))
    return float(((found - expected).norm() / (expected - expected.mean(1, keepdim=True)).norm()).detach())


def test_the_frames_come_nearer(
    tiny_model: Whisper, cut: Whisper, lessons: list[Lesson], tiny: Checkpoint, tmp_path: Path
) -> None:
    before = distance(tiny_model, cut, lessons[-1])
    decoder = {name: tensor.clone() for name, tensor in cut.decoder.state_dict().items()}
    seen: list[dict[str, float]] = []
    config = dataclasses.replace(CONFIG, epochs=5)
    learn_frames(tiny_model, cut, lessons[:-1], tiny.tokens, config, tmp_path / "frames.ckpt", report=seen.append)
    assert distance(tiny_model, cut, lessons[-1]) < 0.8 * before
    assert {"step", "steps", "loss_output", "loss_layers", "loss_kl", "loss_silence"} == set(seen[0])
    assert np.mean([facts["loss_kl"] for facts in seen[-5:]]) < 0.8 * np.mean([facts["loss_kl"] for facts in seen[:5]])
    assert all(torch.equal(cut.decoder.state_dict()[name], tensor) for name, tensor in decoder.items())
    assert not any(parameter.requires_grad for parameter in cut.parameters())


def test_a_killed_run_ends_where_a_whole_one_does(
    tiny_model: Whisper,
    cut: Whisper,
    lessons: list[Lesson],
    tiny: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(checkpoint: Path, report: Report) -> dict[str, torch.Tensor]:
        model = Whisper.from_state(cut.dims, cut.state_dict(), cut.widths)
        learn_frames(tiny_model, model, lessons[:6], tiny.tokens, CONFIG, checkpoint, report=report)
        return model.state_dict()

    check_a_killed_run_goes_on(train, tmp_path, monkeypatch, save_every=4, stop_at=6)
