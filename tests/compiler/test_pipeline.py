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

from whisperfold.compiler import pipeline, stages
from whisperfold.compiler.config import CompileConfig
from whisperfold.compiler.frames import FramesConfig
from whisperfold.compiler.heal import HealConfig
from whisperfold.models.sources import Checkpoint
from whisperfold.runtime.transcribe import Transcriber

CONFIG = CompileConfig(
    source="tiny-random",
    budget="70%",
    calibration_utterances=3,
    probe_utterances=1,
    join_s=(2.0, 4.0),
    window_heal=HealConfig(epochs=1, batch_s=30, rank=2),
    frames=FramesConfig(steps=2, batch_s=10),
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
    assert bundle.manifest["adapt"]["graph"] in bundle.manifest["files"]
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
        patch.setattr(stages, "learn_frames", interrupt)
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
