"""The owner's flow: refusals that keep what is in use, the decision, a whole enrollment on the packaged bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from whisperfold.runtime.adaptation import AdaptationOptions, Adapted, StepReport
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.decision import PromotionRules, Rematch, decide, rematch
from whisperfold.runtime.enroll import Progress, enroll
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.error_rate import Comparison, Score
from whisperfold.runtime.errors import ConfigError, EnrollmentError
from whisperfold.runtime.lessons import canary_lessons, fold_numbers
from whisperfold.runtime.profiles import ProfileStore
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
    assert len({clip.name.split("-")[0] for clip in clips}) == len(clips)


@pytest.fixture
def store(transcriber: Transcriber, tmp_path: Path) -> ProfileStore:
    if "adapt" not in transcriber.bundle.manifest:
        pytest.skip("the bundle has no training graph")
    return ProfileStore(transcriber.bundle, tmp_path / "profiles")


def fill(store: ProfileStore, jfk: np.ndarray, n: int, text: str | None = None, speech: bool = True) -> None:
    """Stretches of the sample clip; each is another recording by a hair."""
    stretches = [("And so, my fellow Americans,", 0, 3), ("Ask what you can do for your country.", 8, 11)]
    recordings = store.recordings("anna")
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


def test_a_profile_that_is_better_stays() -> None:
    facts = {"sentences": {"a": [1, 6], "b": [0, 8], "c": [4, 9], "d": [0, 3]}}
    worse = rematch(facts, {"a": [1, 6], "b": [2, 8], "d": [9, 4], "e": [7, 7]})
    assert worse == Rematch(1, 3, 14), "b grew worse; d has another text now, e is new"
    rules, gain, others = PromotionRules(), comparison(12.0, 9.0), comparison(5.0, 5.0)
    refused = decide(gain, others, rules, worse)
    assert not refused.promoted and refused.reason.startswith(
        "the profile in use understands you better: 1 errors in 14 words of the recordings that it knows, now 3"
    )
    assert decide(gain, others, rules, rematch(facts, {"a": [1, 6], "c": [4, 9]})).promoted
    for other in (
        {},
        {"sentences": None},
        {"sentences": {"x": [0, 1]}},
        {"sentences": {"a": 3}},
        {"sentences": {"a": []}},
    ):
        assert rematch(other, {"a": [1, 6]}) is None


class NoTraining:
    """A run of nothing; training itself is in test_adaptation."""

    held_out: ClassVar[list[list[str]]] = []
    inside: ClassVar[list[list[str]]] = []

    def __init__(self, graph, lessons, held_out, *rest, **more) -> None:
        self._bundle = graph.bundle
        self.inside.append([lesson.name for lesson in lessons])
        self.held_out.append([lesson.name for lesson in held_out])

    def run(self) -> Adapted:
        return Adapted(Adapter.create(self._bundle, 2), 1, 1, ({"epoch": 1.0, "loss": 1.0, "held_out_loss": 1.0},))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> type[NoTraining]:
    monkeypatch.setattr("whisperfold.runtime.enroll.Adaptation", NoTraining)
    NoTraining.held_out.clear()
    NoTraining.inside.clear()
    return NoTraining


def test_added_recordings_must_not_make_the_known_ones_worse(
    store: ProfileStore,
    transcriber: Transcriber,
    jfk: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    no_training: type[NoTraining],
) -> None:
    fill(store, jfk, 12)
    gained = comparison(10.0, 5.0)
    monkeypatch.setattr("whisperfold.runtime.enroll.compare", lambda before, after: gained)
    options = replace(QUICK, rules=PromotionRules(max_canary_rise=100.0))
    first = enroll(store, "anna", transcriber, options)
    assert first.decision.promoted and len(first.profile.facts["sentences"]) == 12
    assert {tuple(pair) for pair in first.profile.facts["sentences"].values()} <= {(0, 5), (0, 8)}
    assert enroll(store, "anna", transcriber, options).decision.promoted, "as good is good enough"
    worse = hear_with_errors(1)
    monkeypatch.setattr("whisperfold.runtime.enroll.hear", worse)
    refused = enroll(store, "anna", transcriber, options)
    assert refused.decision.reason.startswith("the profile in use understands you better: 0 errors in 78 words")
    assert store.active().version == "0002"


@pytest.mark.parametrize(("rises", "strength"), [((0.2,), 1.0), ((0.9, 0.4), 0.7), ((2.0, 0.9, 0.8), 0.5)])
def test_a_profile_that_harms_only_others_is_tried_weaker(
    store: ProfileStore,
    transcriber: Transcriber,
    jfk: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    no_training: type[NoTraining],
    rises: tuple[float, ...],
    strength: float,
) -> None:
    fill(store, jfk, 12)
    found = [c for rise in rises for c in (comparison(5.0, 5.0 + rise), comparison(10.0, 5.0))]  # canary, owner
    monkeypatch.setattr("whisperfold.runtime.enroll.compare", lambda before, after: found.pop(0))
    outcome = enroll(store, "anna", transcriber, QUICK)
    assert found == [] and outcome.decision.promoted == (rises[-1] <= 0.5)
    assert outcome.profile.facts["strength"] == strength
    stored = Adapter.load(outcome.profile.folder / "adapter.safetensors")
    assert stored.scaling == pytest.approx(strength * 8.0)


def hear_with_errors(n: int):
    """Everything is heard with so many errors."""

    def hear(transcriber, lessons, language, told, stage) -> list[Score]:
        return [Score(lesson.name, lesson.text, "?", n, len(lesson.text.split())) for lesson in lessons]

    return hear


def test_the_models_own_text_is_learned_and_judges_nothing(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray, no_training: type[NoTraining]
) -> None:
    fill(store, jfk, 10)
    recordings = store.recordings("anna")
    own = [
        recordings.add(jfk[: 3 * 16000] * np.float32(0.7 - x / 100), "And so my fellow Americans,", "self").file
        for x in range(3)
    ]
    outcome = enroll(store, "anna", transcriber, QUICK)
    assert len(outcome.selection.lessons) == 13 and len(outcome.selection.before) == 10
    assert not {item.name for item in outcome.selection.before} & set(own)
    assert all(set(own) <= set(inside) for inside in no_training.inside)
    assert not any(set(own) & set(held_out) for held_out in no_training.held_out)
    assert sorted(sum(no_training.held_out, [])) == sorted(item.name for item in outcome.selection.before)
    assert outcome.profile.facts["recordings"] == 13 and outcome.profile.facts["compared"] == 10


def test_only_the_models_own_text_is_refused_at_once(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray
) -> None:
    fill(store, jfk, 3)
    for number in range(9):
        store.recordings("anna").add(jfk[: 4 * 16000] * np.float32(0.9 - number / 100), "And so", "self")
    told: list[Progress] = []
    with pytest.raises(EnrollmentError, match="^3 recordings with a text that was read .* 9 with the model's own"):
        enroll(store, "anna", transcriber, QUICK, on_progress=told.append)
    assert told == [], "before any of them is heard"


def test_impossible_folds() -> None:
    for folds in (1, -1):
        with pytest.raises(ConfigError, match=f"folds={folds}: expected 2 or more"):
            EnrollOptions(folds=folds)


def test_the_language_is_kept_for_the_next_time(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray, no_training: type[NoTraining]
) -> None:
    fill(store, jfk, 3)
    with pytest.raises(ConfigError, match="English-only"):
        enroll(store, "anna", transcriber, replace(QUICK, language="de"))
    assert store.language("anna") is None, "this bundle does not know it"
    with pytest.raises(EnrollmentError, match="3 of 3"):
        enroll(store, "anna", transcriber, replace(QUICK, language="en"))
    assert store.language("anna") == "en"
    (store.home("anna") / "language").write_text("de\n")
    with pytest.raises(ConfigError, match="language 'de'"):
        enroll(store, "anna", transcriber, QUICK)


def test_the_time_left_does_not_count_what_was_there(
    store: ProfileStore, transcriber: Transcriber, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of two folds goes on after the first fold and half of the second, and has taken ten seconds since."""
    now_s = [0.0]

    class Run(NoTraining):
        def __init__(self, *rest, on_step, name: str, **more) -> None:
            super().__init__(*rest)
            self._on_step, self._name = on_step, name

        def run(self) -> Adapted:
            if self._name == "fold-1":
                now_s[0] += 10.0
                self._on_step(StepReport("fold-1", 3, 0.75, 1.0, 0.5))
            return super().run()

    monkeypatch.setattr("whisperfold.runtime.enroll.Adaptation", Run)
    monkeypatch.setattr("whisperfold.runtime.enroll.time.monotonic", lambda: now_s[0])
    fill(store, jfk, 12)
    seen: list[Progress] = []
    enroll(store, "anna", transcriber, QUICK, on_progress=seen.append)
    (left_s,) = [progress.remaining_s for progress in seen if progress.stage == "adapting"]
    assert left_s == pytest.approx(10.0 * (2.0 - 0.875) / 0.125)
