"""A tiny model with everything a compile needs of it: lessons, moments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from whisperfold.compiler.calibrate import Moments
    from whisperfold.compiler.teacher import Lesson
    from whisperfold.models.sources import Checkpoint
    from whisperfold.models.whisper import Whisper

sys.path.insert(0, str(Path(__file__).parent))  # killed_run.py, reference_adapter.py, gradient_table.py


@pytest.fixture(scope="session")
def tiny_model(tiny: Checkpoint) -> Whisper:
    """The tiny checkpoint as a model; tests must not change it."""
    from whisperfold.models.whisper import Whisper

    return Whisper.from_state(tiny.dims, tiny.state)


@pytest.fixture(scope="session")
def lessons(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    """What the tiny model says of twelve shipped utterances, cut to a few tokens to be quick."""
    from whisperfold.compiler.manifests import read_items
    from whisperfold.compiler.stages import SHIPPED_SPEECH
    from whisperfold.compiler.teacher import read_lessons, teach
    from whisperfold.compiler.utterances import join_clips

    utterances = sorted(join_clips(read_items(SHIPPED_SPEECH), (2, 14), 0), key=lambda u: u.duration_s)[:12]
    path = tmp_path_factory.mktemp("lessons") / "teacher.safetensors"
    assert teach(tiny, utterances, path)["kept"] == 12
    found = read_lessons(path, utterances)
    for lesson in found:
        lesson.sequences[:] = [(tokens[:12], hidden[:11]) for tokens, hidden in lesson.sequences]
    return found


@pytest.fixture(scope="session")
def moments(tiny_model: Whisper, lessons: list[Lesson]) -> Moments:
    """Second moments of the tiny model."""
    from whisperfold.compiler.calibrate import calibrate

    return calibrate(tiny_model, lessons[:6], "short", 0.5)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)
