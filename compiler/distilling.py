"""The stage between teach and window: original -> (student, where the configuration asks for one).

The student becomes the checkpoint of the compile: its depth and alignment heads are what everything later reads. What
was taught stays the original's.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from safetensors.torch import load_file, save_file

from whisperfold.compiler.stages import Compile, reporter
from whisperfold.compiler.student import make_student, teach_student
from whisperfold.compiler.teacher import Lesson
from whisperfold.compiler.work import StageResult
from whisperfold.models.whisper import Whisper


def distil_student(
    run: Compile, original: Whisper, lessons: list[Lesson], taught: StageResult
) -> tuple[Whisper, StageResult]:
    """Return the student and make it run's checkpoint; the original where none is asked for."""
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
        save_file(student.state_dict(), run.work.file("student.safetensors"))
        checkpoint.unlink(missing_ok=True)
        return {"curve": curve}

    done = run.work.stage("student", [taught.key, asdict(config), run.config.window], work, "student.safetensors")
    run.checkpoint = replace(untrained, state=load_file(run.work.file("student.safetensors")))
    return Whisper.from_state(run.checkpoint.dims, run.checkpoint.state), done
