"""Enrollments that are killed: whatever the moment, the profile in use goes on, and the next run finishes the work.

This file is also the program that is killed: `python test_enroll_kill.py STORE MOMENT` enrolls, and ends by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from whisperfold.runtime.adaptation import AdaptationOptions
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.decision import Decision
from whisperfold.runtime.enroll import Outcome, Progress, enroll
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.transcribe import Transcriber

REPOSITORY = Path(__file__).parents[2]
STRETCHES = [("And so, my fellow Americans,", 0, 3), ("Ask what you can do for your country.", 8, 11)]
SMALL = EnrollOptions(AdaptationOptions(rank=1, epochs=2, batch=1, held_out_clips=1), folds=2, canary_clips=1)
FACTS = {"promoted": True, "reason": "better", "owner": {"before": 10.0, "after": 8.0}, "recordings": 8}

MOMENTS = {
    "checking": ("progress", "checking recordings", 2),
    "first epoch": ("progress", "adapting", 1),
    "second epoch": ("progress", "adapting", 3),
    "checkpoint": ("rename", "fold-0.safetensors", 2),
    "between folds": ("progress", "testing", 1),
    "other speakers": ("progress", "other speakers", 1),
    "saving": ("fsync", "report.html", 1),
    "before the version appears": ("rename", "0001", 1),
    "before promotion": ("rename", "current", 1),
    "between promotion and use": ("rename", "active", 1),
}
"""What is about to happen, to which file or in which stage, for the how manieth time."""


def small_enrollment(
    store: ProfileStore, transcriber: Transcriber, on_progress: Callable[[Progress], None] = lambda progress: None
) -> Outcome:
    """A real one, but of four recordings, and taken whatever it is worth."""
    with (
        mock.patch("whisperfold.runtime.lessons.MIN_RECORDINGS", 4),
        mock.patch("whisperfold.runtime.lessons.MIN_TOTAL_S", 10.0),
        mock.patch("whisperfold.runtime.enroll.decide", lambda *figures: Decision(True, "for the test")),
    ):
        return enroll(store, "anna", transcriber, SMALL, on_progress=on_progress)


def die_at(moment: str) -> Callable[[Progress], None]:
    """Arrange for this process to be killed at a moment; returns what has to be told of progress."""
    kind, target, left = MOMENTS[moment]

    def count(name: str) -> None:
        """One more of these."""
        nonlocal left
        left -= name == target
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    real_rename, real_fsync = os.rename, os.fsync

    def rename(source: Path, path: Path) -> None:
        count(Path(path).name)
        real_rename(source, path)

    def fsync(handle: int) -> None:
        count(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_fsync(handle)

    if kind == "rename":
        os.rename = rename
    elif kind == "fsync":
        os.fsync = fsync
    return lambda progress: count(progress.stage) if kind == "progress" else None


def killed_at(moment: str, store: ProfileStore, bundle: Bundle) -> None:
    """Enroll in another process, until it dies."""
    command = [sys.executable, __file__, str(store.folder.parent), str(bundle.path), moment]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / ".links")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, f"{moment}: {done.returncode} {done.stderr}"


def text_of(store: ProfileStore, bundle: Bundle, jfk: np.ndarray) -> str:
    """What the profile in use hears, as a device that starts now would."""
    return Transcriber.open(bundle.path, threads=2, check=False, profile=store.active()).transcribe(jfk).text


@pytest.fixture
def store(
    transcriber: Transcriber, jfk: np.ndarray, tmp_path: Path, other_voice: tuple[Adapter, dict[str, np.ndarray]]
) -> ProfileStore:
    """Bert's profile is in use, and hears otherwise than the bundle; Anna has four recordings."""
    bundle = transcriber.bundle
    store = ProfileStore(bundle, tmp_path / "profiles")
    store.promote(store.add("bert", *other_voice, FACTS, "<p>bert</p>"))
    store.use("bert")
    for number in range(4):
        words, first, last = STRETCHES[number % 2]
        stretch = jfk[first * 16000 : last * 16000] * np.float32(1.0 - 0.01 * number)
        store.recordings("anna").add(stretch, words)
    return store


def check_finished(store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray) -> None:
    """The next run ends well, the new profile is in use, and nothing of the killed ones is left."""
    outcome = small_enrollment(store, transcriber)
    assert store.active().folder == outcome.profile.folder and store.active().name == "anna"
    assert "country" in text_of(store, transcriber.bundle, jfk)
    left = [path for path in store.root.rglob("*") if ".new-" in path.name or path.name == "state"]
    assert not left, left


def test_killed_again_and_again(store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray) -> None:
    """Every run goes on where the last one was killed, and dies a little later."""
    bundle = transcriber.bundle
    before = text_of(store, bundle, jfk)
    assert before and before != transcriber.transcribe(jfk).text
    for moment in ("second epoch", "between folds", "saving", "between promotion and use"):
        killed_at(moment, store, bundle)
        assert store.active().name == "bert", moment
        assert text_of(store, bundle, jfk) == before, moment
    assert store.has("anna"), "the last one was promoted, but not in use"
    check_finished(store, transcriber, jfk)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_once(store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray, moment: str) -> None:
    before = text_of(store, transcriber.bundle, jfk)
    killed_at(moment, store, transcriber.bundle)
    assert store.active().name == "bert" and text_of(store, transcriber.bundle, jfk) == before
    assert store.has("anna") == (moment == "between promotion and use")
    check_finished(store, transcriber, jfk)


if __name__ == "__main__":
    opened = Transcriber.open(sys.argv[2], threads=2, check=False)
    small_enrollment(ProfileStore(opened.bundle, Path(sys.argv[1])), opened, die_at(sys.argv[3]))
