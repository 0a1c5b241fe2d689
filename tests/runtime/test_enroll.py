"""The owner's flow: refusals that keep what is in use, the decision, a whole enrollment on the packaged bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime.adaptation import AdaptationOptions, Adapted
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.decision import PromotionRules, decide
from whisperfold.runtime.enroll import EnrollOptions, Progress, enroll
from whisperfold.runtime.error_rate import Comparison
from whisperfold.runtime.errors import ConfigError, EnrollmentError
from whisperfold.runtime.lessons import canary_lessons, fold_numbers
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recordings import RecordingStore, read_source
from whisperfold.runtime.transcribe import Transcriber

QUICK = EnrollOptions(AdaptationOptions(rank=2, epochs=1), folds=2, canary_clips=1)


def comparison(before: float, after: float, sure: float = 0.99) -> Comparison:
    return Comparison(before, after, after - before - 1.0, after - before + 1.0, sure)


@pytest.mark.parametrize(
    ("owner", "canary", "promoted", "reason"),
    [
        (comparison(12.0, 9.0), comparison(5.0, 5.4), True, "12.0 -> 9.0"),
        (comparison(12.0, 9.0), comparison(5.0, 5.6), False, "others would be understood worse"),
        (comparison(12.0, 12.0), comparison(5.0, 4.0), False, "no gain"),
        (comparison(12.0, 11.9, 0.6), comparison(5.0, 5.0), False, "may be luck"),
        (comparison(0.0, 0.0), comparison(5.0, 5.0), False, "already understands"),
    ],
)
def test_decision(owner: Comparison, canary: Comparison, promoted: bool, reason: str) -> None:
    decision = decide(owner, canary, PromotionRules())
    assert decision.promoted == promoted and reason in decision.reason
    with pytest.raises(ConfigError):
        PromotionRules(min_probability=0.2)


def test_every_recording_is_in_one_fold() -> None:
    for total_s, n_folds in ((45.0, 4), (120.0, 3), (350.0, 2)):
        folds = fold_numbers(21, total_s, 0, seed=1)
        counts = np.bincount(folds)
        assert counts.size == n_folds and counts.max() - counts.min() <= 1


def test_the_packaged_clips_are_other_speakers_with_texts() -> None:
    clips = canary_lessons()
    assert len(clips) == 34 and all(len(clip.text.split()) > 2 for clip in clips)
    replay = [item.name for item in read_source(Path(__file__).parents[2] / "runtime/canary/replay.jsonl")]
    assert not {name.split("-")[0] for name in replay} & {clip.name.split("-")[0] for clip in clips}


@pytest.fixture
def store(transcriber: Transcriber, tmp_path: Path) -> ProfileStore:
    if "adapt" not in transcriber.bundle.manifest:
        pytest.skip("the bundle has no training graph")
    return ProfileStore(transcriber.bundle, tmp_path / "profiles")


def fill(store: ProfileStore, jfk: np.ndarray, n: int, text: str | None = None, speech: bool = True) -> None:
    """Stretches of the sample clip; each is another recording by a hair."""
    stretches = [("And so, my fellow Americans,", 0, 3), ("Ask what you can do for your country.", 8, 11)]
    recordings = RecordingStore(store.person("anna") / "recordings")
    for number in range(n):
        words, first, last = stretches[number % 2]
        samples = jfk[first * 16000 : last * 16000] * np.float32(1.0 - 0.01 * number)
        if not speech:
            samples = np.random.default_rng(number).normal(0, 0.03, 48000).astype(np.float32)
        recordings.add(samples, text or words)


@pytest.mark.parametrize(
    ("n", "text", "speech", "message"),
    [
        (3, None, True, "3 of 3 recordings can be used, 9 s; expected at least 8 and 30 s"),
        (10, "Please turn the kitchen lights on and close the curtains.", True, "are they somebody else's"),
        (10, None, False, "no speech in it"),
        (0, None, True, "0 of 0 recordings"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray, n: int, text: str, speech: bool, message: str
) -> None:
    fill(store, jfk, n, text, speech)
    with pytest.raises(EnrollmentError, match=message):
        enroll(store, "anna", transcriber, QUICK)
    assert store.active() is None and store.all() == []


def test_a_small_memory_leaves_long_recordings_out(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray
) -> None:
    fill(store, jfk, 12)
    with pytest.raises(EnrollmentError, match="--max-memory leaves room for 2 s"):
        enroll(store, "anna", transcriber, replace(QUICK, max_memory_mb=400.0))


@pytest.mark.slow
def test_an_enrollment_from_recordings_to_report(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to gain on this clip, so it is refused with a report; the machinery is real from end to end."""
    fill(store, jfk, 12)
    seen: list[Progress] = []
    outcome = enroll(store, "anna", transcriber, QUICK, on_progress=seen.append)
    assert not outcome.decision.promoted and store.active() is None
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["checking recordings", "adapting", "testing", "other speakers"]
    assert seen[-1].share <= 1.0 and any(progress.remaining_s for progress in seen)
    page = outcome.profile.report.read_text()
    assert "Not taken" in page and "fellow Americans" in page and "http" not in page.replace("http-equiv", "")
    assert not (store.person("anna") / "state").exists()

    gained = Comparison(10.0, 5.0, -8.0, -2.0, 1.0)
    monkeypatch.setattr("whisperfold.runtime.enroll.compare", lambda before, after: gained)
    monkeypatch.setattr("whisperfold.runtime.enroll.decide", lambda *a: decide(gained, comparison(5.0, 5.0), a[2]))
    taken = enroll(store, "anna", transcriber, QUICK)
    assert taken.decision.promoted and store.active().version == taken.profile.version == "0002"
    adapted = Transcriber.open(transcriber.bundle.path, threads=2, check=False, profile=store.active())
    assert "country" in adapted.transcribe(jfk).text


def test_an_enrollment_that_is_interrupted_goes_on(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training itself is in test_adaptation; here it only leaves its mark."""
    fill(store, jfk, 12)
    ran: list[str] = []

    class Run:
        def __init__(self, graph, lessons, *rest, checkpoint: Path, name: str, **more) -> None:
            self._bundle, self._checkpoint, self._name = graph.bundle, checkpoint, name

        def run(self) -> Adapted:
            if len(ran) == 1 and not self._checkpoint.exists():
                raise KeyboardInterrupt
            self._checkpoint.write_bytes(b"")
            ran.append(self._name)
            return Adapted(Adapter.create(self._bundle, 2), 1, 1, ({"epoch": 1.0, "loss": 1.0, "held_out_loss": 1.0},))

    monkeypatch.setattr("whisperfold.runtime.enroll.Adaptation", Run)
    with pytest.raises(KeyboardInterrupt):
        enroll(store, "anna", transcriber, QUICK)
    assert store.active() is None and (store.person("anna") / "state" / "fold-0.safetensors").exists()
    outcome = enroll(store, "anna", transcriber, QUICK)
    assert ran == ["fold-0", "fold-0", "fold-1", "all"] and not outcome.decision.promoted
