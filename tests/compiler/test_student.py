"""A student: its layers and heads are the original's, it learns, it resumes, and the bundle made of it works."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_run import Report, check_a_killed_run_goes_on
from rich.console import Console

from whisperfold.compiler import pipeline
from whisperfold.compiler.config import CompileConfig, load_config
from whisperfold.compiler.heal import HealConfig
from whisperfold.compiler.manifests import read_items
from whisperfold.compiler.stages import SHIPPED_SPEECH, Compile
from whisperfold.compiler.student import StudentConfig, kept_decoder_layers, make_student, teach_student
from whisperfold.compiler.teacher import Lesson, read_lessons, teach
from whisperfold.compiler.training_stages import distil_student
from whisperfold.compiler.utterances import join_clips
from whisperfold.compiler.work import StageResult, Work
from whisperfold.models.sources import Checkpoint
from whisperfold.models.tiny import DIMS, tiny_checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.transcribe import Transcriber

CONFIG = StudentConfig(decoder_layers=1, epochs=4, batch_s=20, learning_rate=3e-3)


@pytest.fixture(scope="module")
def deep(tiny: Checkpoint) -> Checkpoint:
    """A random checkpoint with two decoder layers; two heads of the last follow the audio."""
    made = tiny_checkpoint(tiny.path, dims=dataclasses.replace(DIMS, n_text_layer=2))
    tokens = made.tokens | {"suppress": [], "suppress_begin": []}
    return dataclasses.replace(made, tokens=tokens, alignment_heads=[[0, 1], [1, 0]])


@pytest.fixture(scope="module")
def deep_lessons(deep: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    """What it says of six shipped utterances, cut to a few tokens to be quick."""
    utterances = sorted(join_clips(read_items(SHIPPED_SPEECH), (2, 14), 0), key=lambda u: u.duration_s)[:6]
    path = tmp_path_factory.mktemp("lessons") / "teacher.safetensors"
    teach(deep, utterances, path)
    found = read_lessons(path, utterances)
    for lesson in found:
        lesson.sequences[:] = [(tokens[:12], hidden[:11]) for tokens, hidden in lesson.sequences]
    return found


def untrained(deep: Checkpoint) -> Whisper:
    """The student before it is taught."""
    student = make_student(deep, 1)
    return Whisper.from_state(student.dims, student.state)


@pytest.mark.parametrize(
    ("n", "n_kept", "expected"),
    [(6, 2, [0, 5]), (6, 1, [5]), (4, 2, [0, 3]), (12, 4, [0, 4, 7, 11]), (32, 2, [0, 31]), (6, 5, [0, 1, 3, 4, 5])],
)
def test_layers_are_spread_from_the_first_to_the_last(n: int, n_kept: int, expected: list[int]) -> None:
    assert kept_decoder_layers(n, n_kept) == expected


@pytest.mark.parametrize("n_kept", [2, 3])
def test_a_student_is_smaller(deep: Checkpoint, n_kept: int) -> None:
    with pytest.raises(ConfigError, match=f"decoder_layers = {n_kept}: the original has 2, expected 1 to 1"):
        make_student(deep, n_kept)


def test_layers_and_heads_are_renumbered(deep: Checkpoint) -> None:
    student = make_student(deep, 1)
    assert (student.dims.n_text_layer, deep.dims.n_text_layer) == (1, 2)
    for name in ("attn.q.weight", "ffn.fc2.bias", "cross_ln.weight"):
        assert torch.equal(student.state[f"decoder.layers.0.{name}"], deep.state[f"decoder.layers.1.{name}"])
    assert student.alignment_heads == [[0, 0]]
    assert "decoder layers [1] of 2" in student.provenance["student"] and student.name == "distil-tiny-random"
    headless = make_student(dataclasses.replace(deep, alignment_heads=[[0, 1]]), 1)
    assert headless.alignment_heads == [[0, 0], [0, 1]]


def test_it_learns_with_the_decoder_alone(deep: Checkpoint, deep_lessons: list[Lesson], tmp_path: Path) -> None:
    student, seen = untrained(deep), list[dict[str, float]]()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    config = dataclasses.replace(CONFIG, epochs=24)
    teach_student(student, deep_lessons, deep.tokens, config, tmp_path / "student.ckpt", report=seen.append)
    for loss in ("loss_kl", "loss_words"):
        losses = [facts[loss] for facts in seen]
        assert np.mean(losses[-4:]) < 0.85 * losses[0], loss
    assert "loss_silence" in seen[0] and "loss_silence" not in seen[1]
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = {name for name in before if name.startswith("encoder.") or name == "decoder.token_embedding.weight"}
    assert changed == set(before) - frozen
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_a_killed_run_ends_where_a_whole_one_does(
    deep: Checkpoint, deep_lessons: list[Lesson], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(checkpoint: Path, report: Report) -> dict[str, torch.Tensor]:
        student = untrained(deep)
        teach_student(student, deep_lessons, deep.tokens, CONFIG, checkpoint, report=report)
        return student.state_dict()

    check_a_killed_run_goes_on(train, tmp_path, monkeypatch, save_every=2, stop_at=3)


def test_the_student_becomes_the_checkpoint(deep: Checkpoint, deep_lessons: list[Lesson], tmp_path: Path) -> None:
    original, taught, out = Whisper.from_state(deep.dims, deep.state), StageResult("taught", 0.0, {}), io.StringIO()

    def run(config: StudentConfig, taught: StageResult = taught) -> tuple[Compile, Whisper, StageResult]:
        work = Work(tmp_path, Console(file=out))
        state = Compile(CompileConfig(student=config), deep, work, [], [])
        return state, *distil_student(state, original, deep_lessons, taught)

    state, student, done = run(CONFIG)
    assert state.checkpoint.dims == student.dims and student.dims.n_text_layer == 1
    assert torch.equal(state.checkpoint.state["decoder.ln.weight"], student.decoder.ln.weight)
    assert not torch.equal(deep.state["decoder.ln.weight"], student.decoder.ln.weight)
    assert done.facts["curve"][0]["stage"] == "student" and not list(tmp_path.glob("*.ckpt"))
    assert run(CONFIG)[2].key == done.key and "student: unchanged, skipped" in out.getvalue()
    assert run(dataclasses.replace(CONFIG, epochs=0))[2].key != done.key
    assert run(CONFIG, dataclasses.replace(taught, key="other"))[2].key != done.key
    state, student, done = run(StudentConfig())
    assert state.checkpoint is deep and student is original and done is taught


def test_the_bundle_is_the_students(
    deep: Checkpoint, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Taught, healed for its window, exported: one decoder layer in all that is written, and it transcribes."""
    monkeypatch.setattr(pipeline, "load_source", lambda *args, **options: deep)
    shutil.copytree(SHIPPED_SPEECH.parent / "calibration", tmp_path / "calibration")
    (tmp_path / "speech.jsonl").write_text(SHIPPED_SPEECH.read_text().splitlines()[0])
    config = CompileConfig(
        audio=(str(tmp_path / "speech.jsonl"),),
        student=dataclasses.replace(CONFIG, epochs=1),
        window_heal=HealConfig(epochs=1, rank=2),
    )
    out = io.StringIO()
    bundle = pipeline.compile_bundle(config, tmp_path / "out", tmp_path / "work", Console(file=out))
    assert bundle.manifest["dims"]["n_text_layer"] == len(bundle.manifest["widths"]["decoder"]) == 1
    assert bundle.alignment_heads == [(0, 0)]
    assert bundle.stored(bundle.manifest["adapt"]["graph"]) in bundle.manifest["files"]
    found = Transcriber.open(bundle.path).transcribe(jfk[:32000], vad=False, word_timestamps=True)
    assert isinstance(found.text, str)
    assert out.getvalue().index("teach:") < out.getvalue().index("student:") < out.getvalue().index("window:")


def test_the_recipe_and_its_ranges(tmp_path: Path) -> None:
    recipe = load_config(Path(__file__).parents[2] / "compiler" / "configs" / "distil.base.toml")
    assert (recipe.source, recipe.student.decoder_layers) == ("base", 2) and recipe.student.epochs > 0
    assert CompileConfig().student.decoder_layers == 0 and load_config(None, heal_epochs=0).student.epochs == 0
    with pytest.raises(ConfigError, match="student.decoder_layers = -1: expected 0 to 100"):
        CompileConfig(student=StudentConfig(decoder_layers=-1))
