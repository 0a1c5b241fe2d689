"""Healing: it heals, it resumes to the same numbers, its batches cover everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_run import Report, check_a_killed_run_goes_on

from whisperfold.compiler import lesson_training
from whisperfold.compiler.adapt import AdaptConfig, adapt
from whisperfold.compiler.budget import Probe, with_widths
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.factorize import cut_model
from whisperfold.compiler.fold import fold
from whisperfold.compiler.heal import HealConfig, heal
from whisperfold.compiler.lesson_training import batches
from whisperfold.compiler.losses import silence
from whisperfold.compiler.manifests import Item
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError

CONFIG = HealConfig(epochs=3, batch_s=40, rank=4, learning_rate=2e-3)


@pytest.fixture
def cut(tiny_model: Whisper, moments: Moments) -> Whisper:
    """A badly cut model."""
    return cut_model(tiny_model, moments, with_widths(tiny_model.widths, {"encoder.0.vo": 8, "encoder.1.vo": 8}))


def test_healing_heals(
    cut: Whisper, tiny_model: Whisper, lessons: list[Lesson], tiny: Checkpoint, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with torch.no_grad():  # a random model hardly hears its encoder: hurt the decoder too, or nothing is to heal
        cut.decoder.layers[0].ffn.fc2.weight += 0.1 * torch.randn(64, 256)
    probe = Probe(tiny_model, lessons, "short", 0.5)
    before = probe.divergence(cut)
    config = dataclasses.replace(CONFIG, epochs=10, silence_weight=0.0)
    seen: list[dict[str, float]] = []
    heal(cut, lessons, tiny.tokens, config, tmp_path / "heal.ckpt", report=seen.append)
    assert probe.divergence(fold(cut)) < 0.8 * before
    assert {"loss_kl", "loss_hidden", "loss_silence"} <= set(seen[0])


def test_a_resumed_run_is_the_run_it_was(
    tiny_model: Whisper,
    lessons: list[Lesson],
    tiny: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(checkpoint: Path, report: Report) -> dict[str, torch.Tensor]:
        model = Whisper.from_state(tiny_model.dims, tiny_model.state_dict())
        config = HealConfig(epochs=2, batch_s=20, rank=4)
        heal(model, lessons[:6], tiny.tokens, config, checkpoint, report=report)
        return fold(model).state_dict()

    check_a_killed_run_goes_on(train, tmp_path, monkeypatch, save_every=2, stop_at=3)


def test_bfloat16_learns_what_float32_learns(
    tiny_model: Whisper,
    lessons: list[Lesson],
    tiny: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lesson_training, "has_bfloat16", lambda: True)  # slow where it is not so, but the same numbers
    curves: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for bfloat16, seen in curves.items():
        model = Whisper.from_state(tiny_model.dims, tiny_model.state_dict())
        config = dataclasses.replace(CONFIG, bfloat16=bfloat16)
        heal(model, lessons[:6], tiny.tokens, config, tmp_path / f"{bfloat16}.ckpt", report=seen.append)
        assert {weights.dtype for weights in fold(model).state_dict().values()} == {torch.float32}
    assert curves[True] != curves[False]
    for fast, exact in zip(curves[True], curves[False], strict=True):
        assert fast == pytest.approx(exact, rel=0.05)


def test_batches_cover_every_lesson_once(lessons: list[Lesson]) -> None:
    found = list(batches(lessons, 20, 3))
    assert sorted(i for batch in found for i in batch) == list(range(len(lessons)))
    assert found == list(batches(lessons, 20, 3)) != list(batches(lessons, 20, 4))


def test_silence_asks_for_no_text(tiny_model: Whisper, tiny: Checkpoint) -> None:
    loss = silence(tiny_model, np.random.default_rng(0), tiny.tokens, 2, False)
    assert 5 < float(loss.detach()) < 40  # two cross-entropies of an untrained model over 51,864 classes


def test_adapting_learns_the_words(
    tiny_model: Whisper, lessons: list[Lesson], tiny: Checkpoint, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    model = Whisper.from_state(tiny_model.dims, tiny_model.state_dict())
    items = [Item(lesson.utterance.items[0].audio, text="hello world") for lesson in lessons[:4]]
    losses: list[dict[str, float]] = []
    config = AdaptConfig(epochs=6, learning_rate=5e-3, replay_share=0.5)
    tokenizer = Tokenizer.from_file(str(tiny.tokenizer))
    adapt(model, items, lessons, tokenizer, tiny.tokens, config, report=losses.append)
    assert losses[-1]["loss_text"] < losses[0]["loss_text"] - 0.5
    assert any("loss_kl" in facts for facts in losses)
    unlabelled = [Item(items[0].audio)]
    with pytest.raises(CompileError, match="no transcript; every recording of --speaker"):
        adapt(model, unlabelled, lessons, tokenizer, tiny.tokens, config)
