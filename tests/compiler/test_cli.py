"""The commands as a user meets them: one line for what is wrong, exit 2; Ctrl-C says how to go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whisperfold.compiler import pipeline
from whisperfold.runtime.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense: no checkpoint. Tried: directory nonsense: does not exist"),
        (["tiny.en", "--budget", "much"], "budget 'much': expected 20% to 100%"),
        (["tiny.en", "--window", "long"], "expected one of short, full"),
        (["--config", "none.toml"], "none.toml: not readable as TOML"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(["compile", *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "compile_bundle", interrupt)
    assert main(["compile", "tiny.en", "-o", str(tmp_path / "out")]) == 130
    error = " ".join(capsys.readouterr().err.split())
    assert "stopped; the same command goes on from" in error


def test_verify_prints_json(bundle_path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "runtime" / "samples" / "jfk.flac"
    text = "And so my fellow Americans ask not what your country can do for you, ask what you can do for your country."
    (tmp_path / "set.jsonl").write_text(json.dumps({"audio": str(sample), "text": text}))
    assert main(["verify", str(bundle_path), "--set", str(tmp_path / "set.jsonl"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["wer"] <= 10.0
