"""Every way of making the encoder smaller, at every budget, before and after the same healing -> docs/study.*.

    checkpoint -> teach, window, calibrate, measure        shared with `compile`, in its work folder
    cell -> cut -> (healed) -> checked graphs -> bundle -> WER, size, speed, memory -> a line of study.jsonl
    study.jsonl -> study.md, study.html            after every cell, complete or not

A cell = method, budget, healed or not. Killed, the study goes on where it was: in the middle of a healing too.
"""

from __future__ import annotations

import math
import platform
import statistics
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from whisperfold.compiler import stages, training_stages
from whisperfold.compiler.baselines import METHODS, Material, encoder_parameters, kept_layers, teacher_of
from whisperfold.compiler.blocks import ROUNDING
from whisperfold.compiler.budget import FRACTIONS, parse_budget
from whisperfold.compiler.bundling import build_graphs, measure, write_model
from whisperfold.compiler.calibrate import load_moments, save_moments
from whisperfold.compiler.fold import fold
from whisperfold.compiler.input_moments import measure_inputs
from whisperfold.compiler.manifests import read_items
from whisperfold.compiler.parity import check, compare
from whisperfold.compiler.study_config import REFERENCE, Cell, StudyConfig
from whisperfold.compiler.study_page import write_page
from whisperfold.compiler.study_results import add_row, read_rows, write_table
from whisperfold.compiler.study_timing import time_bundles
from whisperfold.compiler.teacher import read_lessons
from whisperfold.compiler.work import StageResult, Work
from whisperfold.models.sources import load_source
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import ConfigError

BASE = Cell("original", 100, False)
"""Uncut at the bundle's window and precision: times are relative to it."""


def run_study(
    config: StudyConfig,
    output: Path,
    work_dir: Path,
    console: Console,
    *,
    only: tuple[str, ...] = (),
    offline: bool = False,
) -> Path:
    """Run the cells that are not done yet, and write output/study.jsonl, study.md and study.html after each.

    Raises:
        ConfigError: a pattern of only matches no cell, or the recipe makes a student.
        SourceError: the checkpoint cannot be had.
        CompileError: as `compile_bundle`.
    """
    torch.set_num_threads(config.recipe.threads)
    cells = config.cells(only)
    output.mkdir(parents=True, exist_ok=True)
    study = Study(config, work_dir, console, offline)
    write_study(config, output)
    for i, cell in enumerate(cells, 1):
        console.print(f"[bold]{cell.name}[/bold] ({i} of {len(cells)})")
        add_row(output / "study.jsonl", study.row(cell))
        write_study(config, output)
    return output / "study.md"


def write_study(config: StudyConfig, output: Path) -> None:
    """Make study.md and study.html of what study.jsonl holds."""
    rows = read_rows(output / "study.jsonl")
    write_table(output / "study.md", rows, config.cells())
    write_page(output / "study.html", rows, config.cells())


class Study:
    """One study under way: what the cells share, and how one of them is made and measured."""

    def __init__(self, config: StudyConfig, work_dir: Path, console: Console, offline: bool) -> None:
        """Load the checkpoint and have it taught, healed for its window and calibrated, as `compile` does."""
        recipe = config.recipe
        if recipe.student.decoder_layers:
            raise ConfigError("student: a study compares cuts of whole checkpoints; leave [student] out of its recipe")
        if parse_budget(recipe.budget).bytes is None:  # sensitivity of the encoder; of both where compile wants both
            recipe = replace(recipe, budget=f"{min(config.budgets)}%", max_wer=None)
        checkpoint = load_source(recipe.source, revision=recipe.revision, offline=offline)
        work = Work(work_dir, console)
        self.config, self.bundles = config, Work(work_dir / "study", console)
        self.run = stages.Compile(recipe, checkpoint, work, stages.read_utterances(recipe), [])
        self.original = Whisper.from_state(checkpoint.dims, checkpoint.state)
        taught = stages.teach_original(self.run)
        self.lessons = read_lessons(work.file("teacher.safetensors"), self.run.utterances, recipe.seed)
        stages.prepare_export(self.run, self.original, self.lessons)
        self.uncut, windowed = training_stages.heal_window(self.run, self.original, self.lessons, taught)
        self.calibrated = stages.take_moments(self.run, self.uncut, self.lessons, windowed)

    @cached_property
    def material(self) -> Material:
        """What the methods need; made when the first cell is cut."""
        cuts = stages.measure_cuts(self.run, self.uncut, self.lessons, self.calibrated)
        recipe, work = self.run.config, self.run.work
        every = max(1, len(self.lessons) // recipe.calibration_utterances)
        chosen = self.lessons[::every][: recipe.calibration_utterances]

        def measure_them(key: str) -> None:
            with work.bar("inputs", len(chosen)) as advance:
                inputs = measure_inputs(self.uncut, chosen, recipe.window, recipe.tail_s, advance)
            save_moments(inputs, work.file("inputs.safetensors"))

        work.stage("inputs", self.calibrated.key, measure_them, "inputs.safetensors")
        moments, inputs = (load_moments(work.file(f"{name}.safetensors")) for name in ("moments", "inputs"))
        return Material(self.uncut, moments, inputs, [cut for cut in cuts if cut.site.startswith("encoder.")])

    def row(self, cell: Cell) -> dict[str, Any]:
        """Return everything that is known of a cell, made and measured if it is not there yet."""
        recipe, asked = self.run.config, cell
        cell = self._made_as(cell)
        built, base = self.build(cell), self.build(BASE)
        items = [item for item in read_items(recipe.verify[0]) if item.text][: self.config.timed_clips]

        def work(key: str) -> dict[str, Any]:
            bundle = self._bundle(cell)
            stage = measure(cell.name, Bundle.open(bundle), recipe.verify, self.bundles.bar)
            own, reference = time_bundles([bundle, self._bundle(BASE)], items, recipe.threads)
            return {
                "wer": stage.wer,
                "bytes": stage.bytes,
                "ms_per_clip": round(1000 * statistics.median(own.clip_s), 1),
                "relative_time": round(sum(own.clip_s) / sum(reference.clip_s), 3),
                "peak_rss_bytes": own.peak_rss_bytes,
            }

        inputs = [built.key, base.key, recipe.verify, len(items), recipe.threads]
        measured = self.bundles.stage(f"{cell.name}-measure", inputs, work)
        return {
            "source": self.run.checkpoint.name,
            **asdict(asked),
            **built.facts,
            **measured.facts,
            "build_s": built.seconds,
            "precision": "fp32" if cell.method == REFERENCE else recipe.precision,
            "window": "full" if cell.method == REFERENCE else recipe.window,
            "healing": self._healing if cell.healed else None,
            "machine": platform.machine(),
            "threads": recipe.threads,
        }

    def _made_as(self, cell: Cell) -> Cell:
        """Return the cell whose bundle serves this one: budgets that keep the same number of layers are one bundle."""
        if cell.method != "layer-drop":
            return cell
        n = len(self.uncut.encoder.layers)
        return replace(cell, budget=math.ceil(100 * len(kept_layers(n, cell.budget / 100)) / n))

    def build(self, cell: Cell) -> StageResult:
        """Cut, heal, check and write the bundle of a cell, unless that is done."""
        recipe = self.run.config
        healing = self._healing if cell.healed else None
        inputs = [self.calibrated.key, asdict(cell), recipe.precision, recipe.tail_s, healing, recipe.vocabulary]
        inputs += [ROUNDING] if recipe.precision == "mixed" else []
        inputs += [recipe.probe_utterances, FRACTIONS] if cell.method == "ours" else []

        def work(key: str) -> dict[str, Any]:
            if cell.method == REFERENCE:
                self._write(cell, self.original, "full", "fp32")
                return {"parameters_percent": 100.0, "widths": self.original.widths.to_json()}
            model = METHODS[cell.method](self.material, cell.budget / 100)
            percent = 100 * encoder_parameters(model) / self.material.parameters
            if cell.healed:
                model = self._heal(model, key)
            self._write(cell, model, recipe.window, recipe.precision)
            return {"parameters_percent": round(percent, 2), "widths": model.widths.to_json()}

        return self.bundles.stage(cell.name, inputs, work, f"{cell.name}.bundle/manifest.json")

    @property
    def _healing(self) -> dict[str, Any]:
        """The part of the recipe that every cut model is healed by."""
        return {part: asdict(getattr(self.run.config, part)) for part in ("refit", "frames", "heal")}

    def _heal(self, model: Whisper, key: str) -> Whisper:
        """Heal a cut model: the encoder's projections and frames, then end to end, with the embedding in 32 bits."""
        run, recipe = self.run, self.run.config
        checkpoints = {stage: self.bundles.file(f"{stage}-{key}.ckpt") for stage in ("frames", "heal")}
        if model.widths.encoder != self.uncut.widths.encoder:
            teacher = teacher_of(self.uncut, model)
            if recipe.refit.batches:
                training_stages.refit_encoder(run, teacher, model)
            if recipe.frames.epochs:
                training_stages.train_frames(run, teacher, model, self.lessons, checkpoints["frames"])
        if recipe.heal.epochs:
            training_stages.train_words(run, model, self.lessons, recipe.heal, checkpoints["heal"], "heal")
            model = fold(model)
        for checkpoint in checkpoints.values():
            checkpoint.unlink(missing_ok=True)
        return model

    def _write(self, cell: Cell, model: Whisper, window: str, precision: str) -> None:
        """Check that the exported graphs are the model, and write its bundle."""
        heads = self.run.checkpoint.alignment_heads
        exact = build_graphs(model, heads, "fp32").files
        check(compare(model, exact, self.lessons[:1], window, self.run.config.tail_s))
        run = replace(self.run, checkpoint=replace(self.run.checkpoint, dims=model.dims))
        if cell.method != REFERENCE:
            run, model = run.with_vocabulary(model)
        write_model(self._bundle(cell), model, run, window, precision, {"results": {}})

    def _bundle(self, cell: Cell) -> Path:
        return self.bundles.file(f"{cell.name}.bundle")
