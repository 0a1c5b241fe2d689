"""The whole flow on a tiny random checkpoint: it compiles, resumes, and leaves a bundle that transcribes."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from whisperfold.compiler import bundling, pipeline, stages, training_stages, vocabulary
from whisperfold.compiler.config import CompileConfig
from whisperfold.compiler.frames import FramesConfig
from whisperfold.compiler.heal import HealConfig
from whisperfold.models.dims import Widths
from whisperfold.models.sources import Checkpoint
from whisperfold.models.tiny import DIMS
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.training_graph import TrainingGraph
from whisperfold.runtime.transcribe import Transcriber

CONFIG = CompileConfig(
    source="tiny-random",
    budget="70%",
    calibration_utterances=3,
    probe_utterances=1,
    join_s=(2.0, 4.0),
    window_heal=HealConfig(epochs=1, batch_s=30, rank=2),
    frames=FramesConfig(epochs=1, batch_s=10),
    heal=HealConfig(epochs=1, batch_s=30, rank=2),
)


@pytest.fixture
def compile_tiny(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Compile the tiny checkpoint into tmp_path on four shipped utterances; returns (bundle, what was printed)."""
    tiny = dataclasses.replace(tiny, tokens=tiny.tokens | {"suppress": [], "suppress_begin": []})
    monkeypatch.setattr(pipeline, "load_source", lambda *args, **options: tiny)
    lines = (stages.SHIPPED_SPEECH).read_text().splitlines()
    shortest = sorted(lines, key=lambda line: float(line.split('"duration_s": ')[1].split(",")[0]))[:4]
    shutil.copytree(stages.SHIPPED_SPEECH.parent / "calibration", tmp_path / "calibration")
    (tmp_path / "speech.jsonl").write_text("\n".join(shortest))

    def run(**changes: Any) -> tuple[Any, str]:
        out = io.StringIO()
        config = dataclasses.replace(CONFIG, audio=(str(tmp_path / "speech.jsonl"),), **changes)
        bundle = pipeline.compile_bundle(config, tmp_path / "out", tmp_path / "work", Console(file=out, width=200))
        return bundle, out.getvalue()

    return run


def test_compile_resume_and_transcribe(compile_tiny: Any, jfk: np.ndarray, tmp_path: Path) -> None:
    bundle, _ = compile_tiny()
    widths = [w for layer in bundle.manifest["widths"]["encoder"] for w in layer.items()]
    assert sum(value for _, value in widths) < 2 * (32 + 32 + 256)
    assert sum(bundle.manifest["bytes"].values()) == sum(
        entry["bytes"] for name, entry in bundle.manifest["files"].items() if name != "report.html"
    )
    assert bundle.stored(bundle.manifest["adapt"]["graph"]) in bundle.manifest["files"]
    assert "<svg" in (bundle.path / "report.html").read_text()
    assert isinstance(Transcriber.open(bundle.path).transcribe(jfk[:32000], vad=False).text, str)
    _, printed = compile_tiny()
    for stage in ("teach", "window", "calibrate", "measure", "factorize", "frames", "heal"):
        assert f"{stage}: unchanged, skipped" in printed
    _, printed = compile_tiny(heal=dataclasses.replace(CONFIG.heal, rank=3))
    assert "frames: unchanged, skipped" in printed and "heal: unchanged" not in printed


def test_interrupted_compile_goes_on(compile_tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_stages, "learn_frames", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compile_tiny()
    assert not (tmp_path / "out").exists()
    bundle, printed = compile_tiny()
    assert "measure: unchanged, skipped" in printed and "heal: unchanged" not in printed
    assert bundle.path == tmp_path / "out"


def test_full_rank_without_healing_is_the_original(compile_tiny: Any, tiny: Checkpoint) -> None:
    import onnx

    bundle, _ = compile_tiny(budget="100%", precision="fp32", window="full")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(bundle.path / "encoder.onnx").graph.initializer}
    expected = tiny.state["encoder.layers.1.ffn.fc1.weight"].numpy().T
    np.testing.assert_array_equal(stored["encoder.layers.1.ffn.fc1.weight"], expected)


def test_both_budgets_at_once(compile_tiny: Any) -> None:
    """The encoder pays its share, the decoder what the size asks for beside it."""
    unhealed = {"window_heal": HealConfig(epochs=0), "frames": FramesConfig(epochs=0), "heal": HealConfig(epochs=0)}
    alone, _ = compile_tiny(budget="70%", **unhealed)
    size_mb = alone.size_bytes / 1e6
    both, _ = compile_tiny(budget=f"70%, {size_mb + 0.07:.3f}MB", **unhealed)
    assert both.manifest["widths"]["encoder"] == alone.manifest["widths"]["encoder"]
    assert both.manifest["widths"]["decoder"] != alone.manifest["widths"]["decoder"]


@pytest.mark.parametrize(
    ("max_wer", "least", "most"),
    [
        pytest.param(0.0, 1.0, 1.0, marks=pytest.mark.slow),
        (5.0, 0.75, 0.85),
        pytest.param(100.0, 0.0, 0.7, marks=pytest.mark.slow),
    ],
)
def test_as_much_is_cut_as_the_wer_allows(
    compile_tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_wer: float, least: float, most: float
) -> None:
    """With a made-up WER that rises by 0.25 for every percent of the layers' widths that goes."""

    def share(bundle: Any) -> float:
        found, full = (
            sum(sum(layer.values()) for side in widths.values() for layer in side)
            for widths in (bundle.manifest["widths"], Widths.full(DIMS).to_json())
        )
        return found / full

    def measure(label: str, bundle: Any, sets: tuple[str, ...], bar: Any) -> bundling.Stage:
        return bundling.Stage(label, bundle.size_bytes, {Path(sets[0]).stem: 10 + 25 * (1 - share(bundle))}, 1.0)

    monkeypatch.setattr(bundling, "measure", measure)
    unhealed = {"window_heal": HealConfig(epochs=0), "frames": FramesConfig(epochs=0), "heal": HealConfig(epochs=0)}
    verify = (str(tmp_path / "speech.jsonl"),)
    bundle, printed = compile_tiny(budget="100%", max_wer=max_wer, verify=verify, **unhealed)
    assert "before healing" in printed
    assert least <= share(bundle) <= most


def test_english_bundle_transcribes_and_can_be_adapted(
    compile_tiny: Any, tiny: Checkpoint, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "N_WORDS", 3000)
    unhealed = {"window_heal": HealConfig(epochs=0), "frames": FramesConfig(epochs=0), "heal": HealConfig(epochs=0)}
    bundle, _ = compile_tiny(budget="100%", vocabulary="en", **unhealed)
    assert tiny.dims.n_vocab - bundle.dims.n_vocab == tiny.tokens["eot"] - bundle.tokens.eot > 10_000
    transcriber = Transcriber.open(bundle.path)
    assert isinstance(transcriber.transcribe(jfk[:32000], vad=False).text, str)
    name = "encoder.layers.0.attn.q.lora_B"
    loss, gradients = TrainingGraph(bundle, 1).run(jfk[:32000], "ask not", Adapter.create(bundle, rank=2), [name])
    assert np.isfinite(loss) and np.abs(gradients[name]).max() > 0
