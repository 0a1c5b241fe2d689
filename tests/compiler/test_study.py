"""The study on a tiny random checkpoint: cells are made, measured and resumed; tables and plots say what is missing."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from whisperfold.compiler import study, study_timing
from whisperfold.compiler.cli import study_command
from whisperfold.compiler.config import CompileConfig
from whisperfold.compiler.frames import FramesConfig
from whisperfold.compiler.heal import HealConfig
from whisperfold.compiler.manifests import Item
from whisperfold.compiler.refit import RefitConfig
from whisperfold.compiler.stages import SHIPPED_SPEECH
from whisperfold.compiler.study import run_study, write_study
from whisperfold.compiler.study_config import Cell, StudyConfig, load_study
from whisperfold.compiler.study_page import write_page
from whisperfold.compiler.study_results import add_row, read_rows, write_table
from whisperfold.compiler.study_timing import time_clips
from whisperfold.compiler.study_verdict import duels, limits, smallest_within
from whisperfold.models.sources import Checkpoint
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import CompileError, ConfigError

HEAL = HealConfig(epochs=1, batch_s=30, rank=2)
FRAMES = FramesConfig(epochs=0.5, batch_s=8.0)


@pytest.fixture
def settings(tmp_path: Path) -> StudyConfig:
    """Two methods at one budget on the four shortest shipped utterances, measured on one of them."""
    lines = SHIPPED_SPEECH.read_text().splitlines()
    shortest = sorted(lines, key=lambda line: float(json.loads(line)["duration_s"]))[:4]
    shutil.copytree(SHIPPED_SPEECH.parent / "calibration", tmp_path / "calibration")
    (tmp_path / "speech.jsonl").write_text("\n".join(shortest))
    labelled = {**json.loads(shortest[0]), "text": "two words"}
    (tmp_path / "check.jsonl").write_text(json.dumps(labelled))
    recipe = CompileConfig(
        source="tiny-random",
        audio=(str(tmp_path / "speech.jsonl"),),
        verify=(str(tmp_path / "check.jsonl"),),
        calibration_utterances=3,
        probe_utterances=1,
        join_s=(2.0, 4.0),
        window_heal=dataclasses.replace(HEAL, epochs=0),
        frames=FRAMES,
        heal=HEAL,
    )
    return StudyConfig(recipe, budgets=(55,), methods=("ours", "lite-asr"), timed_clips=1)


def row(method: str, budget: int, healed: bool, wer: float, **changes: Any) -> dict[str, Any]:
    """A line of study.jsonl."""
    facts = {"source": "tiny.en", "method": method, "budget": budget, "healed": healed, "wer": {"dev": wer}}
    facts |= {"parameters_percent": float(budget), "bytes": 400_000 * budget, "ms_per_clip": 80.0}
    facts |= {"relative_time": budget / 100, "peak_rss_bytes": 150_000_000, "precision": "int8", "window": "short"}
    healing = {"frames": dataclasses.asdict(FRAMES), "heal": dataclasses.asdict(HEAL) | {"epochs": 0}}
    facts |= {"healing": healing if healed else None, "machine": "x86_64", "threads": 2}
    return facts | changes


ROWS = [
    row("reference", 100, False, 10.24, window="full", precision="fp32"),
    row("ours", 55, False, 44.0),
    row("ours", 55, True, 11.0),
    row("svd", 55, False, 180.0),
]
CELLS = StudyConfig(CompileConfig(verify=("dev",)), methods=("original", "ours", "svd"), budgets=(75, 55)).cells()


def test_study_runs_resumes_and_writes(
    settings: StudyConfig, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny = dataclasses.replace(tiny, tokens=tiny.tokens | {"suppress": [], "suppress_begin": []})
    monkeypatch.setattr(study, "load_source", lambda *args, **options: tiny)
    monkeypatch.setattr(  # processes are started in test_a_bundle_is_timed_in_a_process_of_its_own
        study, "time_bundles", lambda bundles, items, threads: [time_clips(path, items, threads) for path in bundles]
    )

    def run(*only: str) -> str:
        out = io.StringIO()
        run_study(settings, tmp_path / "docs", tmp_path / "work", Console(file=out, width=200), only=only)
        return out.getvalue()

    run("lite-asr")
    rows = read_rows(tmp_path / "docs" / "study.jsonl")
    assert [(r["method"], r["budget"], r["healed"]) for r in rows] == [("lite-asr", 55, False), ("lite-asr", 55, True)]
    assert all(45 < r["parameters_percent"] <= 55 and r["wer"]["check"] >= 0 for r in rows)
    assert rows[0]["widths"]["encoder"][0]["fc1"] % 4 == 0 < rows[0]["relative_time"]
    bundle = Bundle.open(tmp_path / "work" / "study" / "lite-asr-55-healed.bundle")
    assert bundle.size_bytes == rows[1]["bytes"] and not list((tmp_path / "work" / "study").glob("*.ckpt"))
    text = (tmp_path / "docs" / "study.md").read_text()
    assert "2 of 5 cells" in text and "| 55 % | **joint twins (ours)** | not run | not run → not run |" in text

    printed = run("lite-asr,healed", "ours,cut")
    for name in ("teach", "calibrate", "measure", "lite-asr-55-healed", "lite-asr-55-healed-measure"):
        assert f"\n{name}: unchanged, skipped" in f"\n{printed}"
    assert [r["method"] for r in read_rows(tmp_path / "docs" / "study.jsonl")] == ["lite-asr", "lite-asr", "ours"]


def test_a_recipe_without_steps_heals_by_the_refit_alone(
    settings: StudyConfig, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "load_source", lambda *args, **options: tiny)
    recipe = dataclasses.replace(
        settings.recipe,
        refit=RefitConfig(batches=2),
        frames=dataclasses.replace(FRAMES, epochs=0),
        heal=dataclasses.replace(HEAL, epochs=0),
    )
    console = Console(file=io.StringIO())
    cells = study.Study(dataclasses.replace(settings, recipe=recipe), tmp_path, console, False)
    cut, healed = (cells.build(Cell("ours", 55, flag)) for flag in (False, True))
    assert cut.facts["widths"] == healed.facts["widths"]
    graphs = [tmp_path / "study" / f"ours-55{name}.bundle" / "encoder.onnx" for name in ("", "-healed")]
    assert graphs[0].read_bytes() != graphs[1].read_bytes()


def test_a_bundle_is_timed_in_a_process_of_its_own(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_timing, "ROUNDS", 1)
    clip = Item(Path(__file__).parents[2] / "runtime" / "samples" / "jfk.flac", text="ask not")
    (timing,) = study_timing.time_bundles([bundle_path], [clip, clip], 1)
    assert len(timing.clip_s) == 2 and min(timing.clip_s) > 0
    assert 40e6 < timing.peak_rss_bytes < 300e6, "torch was imported"


def test_a_row_replaces_the_one_of_its_cell(tmp_path: Path) -> None:
    for line in [*ROWS, row("ours", 55, True, 10.5), row("ours", 55, True, 9.0, source="base")]:
        add_row(tmp_path / "study.jsonl", line)
    found = read_rows(tmp_path / "study.jsonl")
    assert [r["wer"]["dev"] for r in found] == [10.24, 44.0, 10.5, 180.0, 9.0]
    (tmp_path / "study.jsonl").write_text("{half")
    with pytest.raises(CompileError, match="study.jsonl: not JSON lines .* remove the line"):
        read_rows(tmp_path / "study.jsonl")


def test_table_says_what_was_not_run(tmp_path: Path) -> None:
    write_table(tmp_path / "study.md", ROWS, CELLS)
    lines = (tmp_path / "study.md").read_text().splitlines()
    assert "| 100 % | original at 30 s, fp32 | 100.0 | 10.24 | 40.0 | 1.00 | 150 |" in lines
    assert "| 55 % | **joint twins (ours)** | 55.0 | 44.00 → 11.00 | 22.0 | 0.55 | 150 |" in lines
    assert "| 55 % | SVD of each matrix, even | 55.0 | 180.00 → not run | 22.0 | 0.55 | 150 |" in lines
    assert sum("not run → not run" in line for line in lines) == 3
    (conditions,) = (line for line in lines if line.startswith("4 of 11 cells. int8, short window, 2 threads"))
    assert "Frames: epochs 0.5, batch_s 8.0" in conditions and conditions.endswith("Heal: none.")


def test_the_table_says_how_far_and_where_another_method_is_better(tmp_path: Path) -> None:
    rows = [*ROWS, row("svd", 55, True, 10.9), row("ours", 75, True, 10.74), row("svd", 75, True, 12.0)]
    assert (smallest_within(rows, 0.5, ["dev"]) or {})["budget"] == 75
    assert (smallest_within(rows, 1.0, ["dev"]) or {})["budget"] == 55
    assert smallest_within(rows, 0.4, ["dev"]) is None and smallest_within(rows[1:], 1.0, ["dev"]) is None
    assert smallest_within(rows, 1.0, ["dev", "another set"]) is None
    assert (
        "+0.5 of the original at 30 s on every set: 75.0 % of the encoder (healed; dev 10.74)"
        in limits(rows, ["dev"])[0]
    )
    assert duels(rows, ["dev"]) == [
        (55, False, "dev", 44.0, 180.0, "svd"),
        (75, True, "dev", 10.74, 12.0, "svd"),
        (55, True, "dev", 11.0, 10.9, "svd"),
    ]
    write_table(tmp_path / "study.md", rows, CELLS)
    text = (tmp_path / "study.md").read_text()
    assert "better than every other method that was measured in 1 of 2" in text
    assert "| 55 %, healed | dev | 11.00 | 10.90 | SVD of each matrix, even | -0.10 |" in text


def test_page_is_one_file_and_complete_or_not(tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    write_page(page, ROWS, CELLS)
    text = page.read_text()
    assert text.count("<svg") == 1 and "<script" not in text and "url(http" not in text and "#0102" not in text
    assert "joint twins (ours)" in text and "SVD of each matrix, even" in text
    assert "7 not run" in text and "svd-55-healed" in text
    write_page(page, [], CELLS)
    assert "11 cells not run" in page.read_text()


def test_one_set_may_be_missing_from_some_rows(tmp_path: Path) -> None:
    rows = [row("ours", 55, True, 11.0), row("svd", 55, True, 30.0)]
    rows[0]["wer"]["accented"] = 13.0
    write_table(tmp_path / "study.md", rows, CELLS)
    write_page(tmp_path / "study.html", rows, CELLS)
    assert "not run → 30.00 | not run → not run |" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.html").read_text().count("<svg") == 2


def test_cells_are_chosen_by_patterns(settings: StudyConfig) -> None:
    assert [cell.name for cell in settings.cells()] == [
        "reference-100", "ours-55", "lite-asr-55", "ours-55-healed", "lite-asr-55-healed"]  # fmt: skip
    assert settings.cells(("ours, 55%",)) == [Cell("ours", 55, False), Cell("ours", 55, True)]
    assert settings.cells(("healed,lite-asr", "reference")) == [
        Cell("reference", 100, False),
        Cell("lite-asr", 55, True),
    ]
    more = dataclasses.replace(settings, own_budgets=(80, 55))
    assert [cell.name for cell in more.cells()][1:4] == ["ours-80", "ours-55", "lite-asr-55"]
    assert dataclasses.replace(more, methods=("lite-asr",)).cells(("55,cut",)) == [Cell("lite-asr", 55, False)]
    with pytest.raises(ConfigError, match="--only svd,55: no such cell; methods reference, ours, lite-asr; budgets 55"):
        settings.cells(("svd,55",))


def test_file_takes_a_recipe_and_changes_to_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        'source = "base"\nverify = ["a.jsonl"]\nprecision = "fp32"\n[heal]\nrank = 8\n'
    )
    file = tmp_path / "study.toml"
    file.write_text(
        'recipe = "recipe.toml"\nbudgets = [60]\nmethods = ["svd"]\nverify = ["b.jsonl"]\nheal = { epochs = 2 }\n'
    )
    loaded = load_study(file)
    assert (loaded.budgets, loaded.methods, loaded.recipe.source) == ((60,), ("svd",), "base")
    assert loaded.recipe.verify == (str(tmp_path / "b.jsonl"),) and loaded.recipe.precision == "fp32"
    assert (loaded.recipe.heal.rank, loaded.recipe.heal.epochs) == (8, 2)


def test_the_packaged_study_is_valid() -> None:
    loaded = load_study(Path(__file__).parents[2] / "compiler" / "configs" / "study.tiny.en.toml")
    assert loaded.recipe.source == "tiny.en" and len(loaded.cells()) == 3 + 2 * (3 * 7 + 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budgts = [90]", "unknown key 'budgts'; did you mean budget?"),
        ("budgets = [", "not readable as TOML"),
        ('verify = ["a"]\nmethods = ["magic"]', "methods: 'magic': expected some of original, ours"),
        ('verify = ["a"]\nbudgets = [0.55]', "budgets: 0.55: expected whole numbers from 20 to 99"),
        ("budgets = [55]", "verify: no set to measure on"),
        ('verify = ["a"]\nadapter = "x"', "unknown key 'adapter'"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "study.toml")
    assert message in str(caught.value)


def test_report_is_written_without_running(settings: StudyConfig, tmp_path: Path) -> None:
    add_row(tmp_path / "study.jsonl", ROWS[2])
    write_study(settings, tmp_path)
    assert "1 of 5 cells" in (tmp_path / "study.md").read_text()
    assert np.all([(tmp_path / f"study.{kind}").exists() for kind in ("md", "html")])


def test_command_writes_the_report_and_says_how_to_go_on(
    settings: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", interrupt)
    (tmp_path / "study.toml").write_text(f"verify = [{json.dumps(settings.recipe.verify[0])}]\n")
    command, runner = typer.Typer(), CliRunner()
    command.command()(study_command)
    arguments = ["--config", str(tmp_path / "study.toml"), "-o", str(tmp_path / "docs"), "--work", str(tmp_path)]
    assert runner.invoke(command, arguments).exit_code == 130
    (tmp_path / "docs").mkdir()
    assert runner.invoke(command, [*arguments, "--report"]).exit_code == 0
    assert "45 cells not run" in (tmp_path / "docs" / "study.md").read_text()
