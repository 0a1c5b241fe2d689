"""The compiler's stages that train: student, window, refit, frames, heal, adapt; see stages.py and pipeline.py.

All but the two short ones, refit and adapt, keep checkpoints in the work folder, so that a killed run goes on. What a
stage leaves is whole weights, adapters folded, and its losses.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from whisperfold.compiler.adapt import adapt
from whisperfold.compiler.adapt_graph import EMBEDDING
from whisperfold.compiler.blocks import ROUNDING, fine_rows, stored_rows
from whisperfold.compiler.fold import fold
from whisperfold.compiler.frames import learn_frames
from whisperfold.compiler.heal import HealConfig, heal
from whisperfold.compiler.manifests import read_items
from whisperfold.compiler.refit import crops, refit
from whisperfold.compiler.stages import Compile, audio_key
from whisperfold.compiler.student import make_student, teach_student
from whisperfold.compiler.teacher import Lesson
from whisperfold.compiler.work import StageResult
from whisperfold.models.whisper import Whisper

REFIT = 1
"""Beside the seed: speech of the closed form is not that of other draws."""


def distil_student(
    run: Compile, original: Whisper, lessons: list[Lesson], taught: StageResult
) -> tuple[Whisper, StageResult]:
    """Return the student and make it run's checkpoint; the original where none is asked for.

    Its depth and alignment heads are what everything later reads. What was taught stays the original's.
    """
    config = run.config.student
    if config.decoder_layers == 0:
        return original, taught
    untrained = make_student(run.checkpoint, config.decoder_layers)

    def work(key: str) -> dict[str, Any]:
        curve: list[dict[str, Any]] = []
        student = Whisper.from_state(untrained.dims, untrained.state)
        checkpoint = run.work.file(f"student-{key}.ckpt")
        with run.work.bar("student", 1) as bar:
            report = reporter(bar, curve, "student")
            tokens = run.checkpoint.tokens
            teach_student(student, lessons, tokens, config, checkpoint, full_window=run.full_window, report=report)
        run.save(student, "student.safetensors")
        checkpoint.unlink(missing_ok=True)
        return {"curve": curve}

    done = run.work.stage("student", [taught.key, asdict(config), run.config.window], work, "student.safetensors")
    run.checkpoint = replace(untrained, state=load_file(run.work.file("student.safetensors")))
    return Whisper.from_state(run.checkpoint.dims, run.checkpoint.state), done


def heal_window(
    run: Compile, original: Whisper, lessons: list[Lesson], taught: StageResult
) -> tuple[Whisper, StageResult]:
    """Return the uncut model as it hears short windows; the original where the window is full, or nothing is healed."""
    config = run.config
    if run.full_window or config.window_heal.epochs == 0:
        return original, taught

    def work(key: str) -> dict[str, Any]:
        model = Whisper.from_state(run.checkpoint.dims, original.state_dict())
        return {"curve": _train(run, model, lessons, config.window_heal, f"window-{key}", "windowed.safetensors")}

    done = run.work.stage("window", [taught.key, asdict(config.window_heal)], work, "windowed.safetensors")
    return run.load(original.widths, "windowed.safetensors"), done


def refit_cut(run: Compile, uncut: Whisper, cut: Whisper, factorized: StageResult) -> tuple[Whisper, StageResult]:
    """Solve the cut encoder's output projections on its own inputs; nothing where it was not cut."""
    config = run.config
    if config.refit.batches == 0 or cut.widths.encoder == uncut.widths.encoder:
        return cut, factorized

    def work(key: str) -> dict[str, Any]:
        refit_encoder(run, uncut, cut)
        run.save(cut, "refitted.safetensors")
        return {}

    done = run.work.stage("refit", [factorized.key, asdict(config.refit)], work, "refitted.safetensors")
    return run.load(cut.widths, "refitted.safetensors"), done


def refit_encoder(run: Compile, uncut: Whisper, cut: Whisper) -> None:
    """Solve the output projections of a cut encoder, in place, on crops of the run's speech."""
    config, seed = run.config.refit, run.config.seed
    audio = run.load_audio()
    draws = (np.random.default_rng((seed, REFIT, i)) for i in range(config.batches))
    mels = [crops(audio, config, rng, cut.dims.n_mels) for rng in draws]
    with run.work.bar("refit", len(cut.encoder.layers)) as advance:
        refit(uncut, cut, mels, config.ridge, advance)


def learn_cut_frames(
    run: Compile, uncut: Whisper, cut: Whisper, lessons: list[Lesson], before: StageResult
) -> tuple[Whisper, StageResult]:
    """Have the cut encoder learn the uncut one's frames and words; nothing where it was not cut."""
    config = run.config

    def work(key: str) -> dict[str, Any]:
        checkpoint = run.work.file(f"frames-{key}.ckpt")
        curve = train_frames(run, uncut, cut, lessons, checkpoint)
        run.save(cut, "framed.safetensors")
        checkpoint.unlink(missing_ok=True)
        return {"curve": curve}

    if config.frames.epochs == 0 or cut.widths.encoder == uncut.widths.encoder:
        return cut, before
    done = run.work.stage("frames", [before.key, asdict(config.frames), config.window], work, "framed.safetensors")
    return run.load(cut.widths, "framed.safetensors"), done


def train_frames(
    run: Compile, uncut: Whisper, cut: Whisper, lessons: list[Lesson], checkpoint: Path
) -> list[dict[str, Any]]:
    """Have a cut encoder learn the uncut one's frames and words, in place; return the losses. The checkpoint stays."""
    curve: list[dict[str, Any]] = []
    with run.work.bar("frames", 1) as bar:
        learn_frames(
            uncut,
            cut,
            lessons,
            run.checkpoint.tokens,
            run.config.frames,
            checkpoint,
            full_window=run.full_window,
            report=reporter(bar, curve, "frames"),
        )
    return curve


def heal_cut(run: Compile, model: Whisper, lessons: list[Lesson], before: StageResult) -> tuple[Whisper, StageResult]:
    """Heal the cut model end to end, with the token embedding as the bundle will store it."""
    config = run.config
    table = model.decoder.token_embedding.weight.data
    embedding = table.clone()

    def work(key: str) -> dict[str, Any]:
        if EMBEDDING in run.blocks:
            coarse = run.blocks[EMBEDDING]
            table.copy_(torch.from_numpy(stored_rows(coarse, fine_rows(embedding.numpy(), coarse))))
        return {"curve": _train(run, model, lessons, config.heal, f"heal-{key}", "healed.safetensors", embedding)}

    if config.heal.epochs == 0:
        return model, before
    inputs = [before.key, asdict(config.heal), config.window, sorted(run.blocks), ROUNDING]
    done = run.work.stage("heal", inputs, work, "healed.safetensors")
    healed = run.load(model.widths, "healed.safetensors")
    healed.decoder.token_embedding.weight.data.copy_(embedding)  # 4 bits again at the export, which measures them
    return healed, done


def _train(
    run: Compile,
    model: Whisper,
    lessons: list[Lesson],
    config: HealConfig,
    name: str,
    artefact: str,
    embedding: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Heal a model end to end, write it folded, and return the losses."""
    checkpoint = run.work.file(f"{name}.ckpt")
    curve = train_words(run, model, lessons, config, checkpoint, name.partition("-")[0], embedding)
    run.save(fold(model), artefact)
    checkpoint.unlink(missing_ok=True)
    return curve


def train_words(
    run: Compile,
    model: Whisper,
    lessons: list[Lesson],
    config: HealConfig,
    checkpoint: Path,
    stage: str,
    embedding: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Heal a model end to end, in place, adapters left attached; return the losses. The checkpoint stays."""
    curve: list[dict[str, Any]] = []
    with run.work.bar(stage, 1) as bar:
        heal(
            model,
            lessons,
            run.checkpoint.tokens,
            config,
            checkpoint,
            full_window=run.full_window,
            embedding=embedding,
            report=reporter(bar, curve, stage),
        )
    return curve


def adapt_to_speaker(run: Compile, healed: Whisper, lessons: list[Lesson], healing: StageResult) -> Whisper:
    """Adapt the healed model to the recordings of one person."""
    config = run.config
    items = read_items(str(config.speaker))

    def work(key: str) -> dict[str, Any]:
        curve: list[dict[str, Any]] = []
        with run.work.bar("adapt", 1) as bar:
            adapt(
                healed,
                items,
                lessons,
                Tokenizer.from_file(str(run.checkpoint.tokenizer)),
                run.checkpoint.tokens,
                config.adapt,
                seed=config.seed,
                full_window=run.full_window,
                report=reporter(bar, curve, "adapt"),
            )
        run.save(fold(healed), "adapted.safetensors")
        return {"curve": curve}

    run.work.stage("adapt", [healing.key, asdict(config.adapt), audio_key(items)], work, "adapted.safetensors")
    return run.load(healed.widths, "adapted.safetensors")


def reporter(bar: Any, curve: list[dict[str, Any]], stage: str) -> Any:
    """Return a callback that draws the bar and keeps every tenth step of a stage for the report."""

    def report(facts: dict[str, float]) -> None:
        bar.total(int(facts["steps"]))
        losses = " ".join(f"{name[5:]}={value:.3f}" for name, value in facts.items() if name.startswith("loss_"))
        bar(losses, done=int(facts["step"]) + 1)
        if facts["step"] % 10 == 0:
            curve.append({"stage": stage} | {name: round(value, 5) for name, value in facts.items()})

    return report
