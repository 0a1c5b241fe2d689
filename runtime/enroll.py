"""The owner's flow: recordings -> gradients -> personal adapter -> folded profile, taken only if it is better.

    recordings -> checks, heard before -> adapters of the folds -> heard after -------+
       adapter of all of them -> folded, 8 bit -> other speakers, before and after ---+-> decision -> profile
                 ^-------------- weaker, where it is only others that it harms -------+

The owner's figures come from the folds: every recording is heard by weights that were not trained on it, folded and
quantised like the profile. One thing it does decide: a run whose loss on it rises above what it was before learning is
stopped, and its last harmless epoch taken; so the figures of such a run are a little too good. The profile itself is
then trained on all recordings, for as long as it did the folds no harm; the canary judges that very profile. A profile
that is in use is only replaced by one with no more errors in the recordings that both were judged by.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from whisperfold.runtime.adaptation import Adaptation, Adapted, StepReport
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.decision import Decision, Rematch, decide, rematch
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.error_rate import Comparison, Score, compare
from whisperfold.runtime.errors import EnrollmentError, ProfileError
from whisperfold.runtime.files import private_dir, refusal_as
from whisperfold.runtime.lessons import (
    Selection,
    canary_lessons,
    fold_numbers,
    hear,
    longest_recording_s,
    select,
)
from whisperfold.runtime.limits import DeviceGuard
from whisperfold.runtime.memory import give_back
from whisperfold.runtime.profile_report import render_report
from whisperfold.runtime.profiles import Profile, ProfileStore
from whisperfold.runtime.session import Engine
from whisperfold.runtime.training_graph import Lesson, TrainingGraph
from whisperfold.runtime.transcribe import Transcriber

_LOG = logging.getLogger(__name__)
STRENGTHS = (1.0, 0.7, 0.5)
"""Of a profile, as shares of what was learned: half way back, a model has most of what it knew again and keeps most of
what it learned (WiSE-FT, Wortsman et al., arXiv 2109.01903)."""


@dataclass(frozen=True)
class Progress:
    """Where an enrollment is."""

    stage: str
    """checking recordings, adapting, testing, other speakers."""
    share: float
    """Of the stage, 0 to 1."""
    remaining_s: float | None = None
    """Estimate of the adaptation's rest."""
    loss: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What an enrollment ends with; a refused profile is kept beside the one in use, with its report."""

    profile: Profile
    decision: Decision
    owner: Comparison
    canary: Comparison
    selection: Selection


OnProgress = Callable[[Progress], None]


def enroll(
    store: ProfileStore,
    name: str,
    transcriber: Transcriber,
    options: EnrollOptions | None = None,
    *,
    on_progress: OnProgress = lambda progress: None,
    guard: DeviceGuard | None = None,
) -> Outcome:
    """Learn the voice of a person from the recordings in the store, and put the profile in use if it is better.

    Args:
        store: of the profiles for the transcriber's bundle.
        name: of the person.
        transcriber: the bundle as it is, without a profile.
        options: how.
        on_progress: told often; an exception of it ends the enrollment, which can be resumed.
        guard: watches temperature and battery.

    Raises:
        EnrollmentError: the recordings cannot be learned from, or the device must rest; nothing has changed.
        ProfileError: another process enrolls this person, or the disk is full.
        ConfigError: a language that the bundle does not know.
    """
    with store.locked(name):
        run = _Enrollment(store, name, transcriber, options or EnrollOptions(), on_progress, guard or DeviceGuard())
        selection = run.select()
        adapted = run.cross_validate()
        learned = run.train_all(adapted)
        for strength in STRENGTHS:
            after = run.hear_folds(adapted, strength)
            final = replace(learned, adapter=learned.adapter.weakened(strength))
            canary = run.other_speakers(final.adapter)
            owner = compare(selection.before, after)
            decision = decide(owner, canary, run.options.rules, run.against_current(after))
            if not decision.harms_others:
                break
        profile = run.save(final, strength, adapted, after, decision, owner, canary)
        if decision.promoted:
            store.promote(profile)
            store.use(name)
        run.clean_up()
        _LOG.info("version=%s promoted=%s", profile.version, decision.promoted)
        return Outcome(profile, decision, owner, canary, selection)


class _Enrollment:
    """The stages of one enrollment, in the order of `enroll`."""

    def __init__(
        self,
        store: ProfileStore,
        name: str,
        transcriber: Transcriber,
        options: EnrollOptions,
        on_progress: OnProgress,
        guard: DeviceGuard,
    ) -> None:
        self.store, self.name, self.transcriber, self.options = store, name, transcriber, options
        self.bundle = transcriber.bundle
        self._on_progress, self._guard = on_progress, guard
        known = options.language or store.language(name)
        self._language = known or ("en" if self.bundle.tokens.multilingual else None)
        longest_s = longest_recording_s(self.bundle, self.options.max_memory_mb)
        adaptation = self.options.adaptation
        self._recipe = replace(adaptation, max_joined_s=min(adaptation.max_joined_s, longest_s))
        self._threads = transcriber.engine.threads
        self._graph = TrainingGraph(self.bundle, self._threads, self._language)
        store.keep_language(name, options.language)
        self._state = store.person(name) / "state"
        with refusal_as(EnrollmentError, self._state):
            private_dir(self._state)
        self._started_s = time.monotonic()
        self._planned, self._done, self._resumed = 1.0, 0.0, 0.0

    def select(self) -> Selection:
        """Check the recordings and divide them."""
        recordings = self.store.recordings(self.name)
        self.selection = select(recordings, self.transcriber, self.options.max_memory_mb, self._language, self._told)
        self.lessons, total_s = self.selection.lessons, self.selection.total_s
        compared, seed = [item.name for item in self.selection.before], self.options.adaptation.seed
        numbers = fold_numbers(len(compared), total_s, self.options.folds, seed)
        self._folds = dict(zip(compared, numbers.tolist(), strict=True))
        self._n_folds = max(self._folds.values()) + 1
        # Units: one run over all recordings; each of the compared ones is missing in one fold.
        self._planned = self._n_folds + 1 - len(compared) / len(self.lessons)
        return self.selection

    def cross_validate(self) -> list[Adapted]:
        """Train one adapter per fold on the other folds."""
        self._training_s = time.monotonic()
        adapted: list[Adapted] = []
        for number in range(self._n_folds):
            inside = [lesson for lesson in self.lessons if self._folds.get(lesson.name) != number]
            adapted.append(self._train(f"fold-{number}", inside, self._fold(number)))
            self._done += len(inside) / len(self.lessons)
            give_back()
        return adapted

    def hear_folds(self, adapted: Sequence[Adapted], strength: float) -> list[Score]:
        """Have every recording heard by the adapter that did not learn it, weakened, folded and quantised."""
        scores: dict[str, Score] = {}
        for number, run in enumerate(adapted):
            folded = self._folded(run.adapter.weakened(strength))
            heard = hear(folded, self._fold(number), self._language, self._told, "testing")
            scores |= {item.name: item for item in heard}
            del folded
            give_back()
        return [scores[item.name] for item in self.selection.before]

    def _fold(self, number: int) -> list[Lesson]:
        """The recordings of a fold."""
        return [lesson for lesson in self.lessons if self._folds.get(lesson.name) == number]

    def train_all(self, adapted: Sequence[Adapted]) -> Adapted:
        """Train the profile's adapter on all recordings, for the share of the epochs that did the folds no harm."""
        harmless = np.mean([item.epochs / item.planned_epochs for item in adapted])
        n_epochs = self.options.adaptation.n_epochs(len(self.lessons))
        return self._train("all", self.lessons, (), stop_after=max(1, round(n_epochs * float(harmless))))

    def other_speakers(self, adapter: Adapter) -> Comparison:
        """The canary, before and after."""
        clips, before = self._canary
        return compare(before, self._hear_canary(self._folded(adapter), clips))

    @cached_property
    def _canary(self) -> tuple[list[Lesson], list[Score]]:
        """Clips of other speakers, and how the bundle as it is hears them."""
        clips = canary_lessons(self.options.canary_clips)
        return clips, self._hear_canary(self.transcriber, clips)

    def _hear_canary(self, transcriber: Transcriber, clips: Sequence[Lesson]) -> list[Score]:
        """The clips of other speakers, which are English."""
        language = "en" if self.bundle.tokens.multilingual else None
        return hear(transcriber, clips, language, self._told, "other speakers")

    def against_current(self, after: Sequence[Score]) -> Rematch | None:
        """The new profile and the current one, if there is one, in the recordings that both were judged by."""
        with suppress(ProfileError):
            return rematch(self.store.get(self.name).facts, self._sentences(after))
        return None

    def save(
        self,
        final: Adapted,
        strength: float,
        folds: Sequence[Adapted],
        after: Sequence[Score],
        decision: Decision,
        owner: Comparison,
        canary: Comparison,
    ) -> Profile:
        """Write the profile's new version; it is not in use yet. `other_speakers` has folded it."""
        facts: dict[str, Any] = {
            "promoted": decision.promoted,
            "reason": decision.reason,
            "owner": asdict(owner),
            "canary": asdict(canary),
            "recordings": len(self.lessons),
            "recordings_s": round(self.selection.total_s, 1),
            "compared": len(after),
            "sentences": self._sentences(after),
            "left_out": len(self.selection.left_out),
            "folds": self._n_folds,
            "epochs": final.epochs,
            "seconds": round(time.monotonic() - self._started_s, 1),
            "strength": strength,
            "history": [list(run.history) for run in (*folds, final)],
            "options": asdict(self._recipe),
            "rules": asdict(self.options.rules),
            "bundle_name": self.bundle.name,
            "norms": {module: round(norm, 4) for module, norm in final.adapter.norms().items()},
        }
        page = render_report(self.name, facts, self.selection.before, after, self.selection.left_out)
        return self.store.add(self.name, final.adapter, self._weights, facts, page)

    def clean_up(self) -> None:
        """Forget the checkpoints."""
        shutil.rmtree(self._state, ignore_errors=True)

    def _sentences(self, after: Sequence[Score]) -> dict[str, list[int]]:
        """Digest of a recording -> cross-validated errors, and words."""
        return {self.selection.digests[item.name]: [item.errors, item.words] for item in after}

    def _train(
        self, run: str, lessons: Sequence[Lesson], held_out: Sequence[Lesson], stop_after: int | None = None
    ) -> Adapted:
        """One adaptation with its checkpoint."""
        unit, resumed_share = len(lessons) / len(self.lessons), 1.0  # until a step says that less was there

        def on_step(report: StepReport) -> None:
            """Watch the device, tell how far it is."""
            nonlocal resumed_share
            self._guard.check()
            resumed_share, done = report.resumed_share, self._done + unit * report.share
            spent_s, fresh = time.monotonic() - self._training_s, done - self._resumed - unit * resumed_share
            remaining_s = spent_s * (self._planned - done) / fresh if fresh > 0.02 else None
            self._on_progress(Progress("adapting", done / self._planned, remaining_s, report.loss))

        adapted = Adaptation(
            self._graph,
            lessons,
            held_out,
            self._recipe,
            stop_after=stop_after,
            checkpoint=self._state / f"{run}.safetensors",
            on_step=on_step,
            name=run,
        ).run()
        self._resumed += unit * resumed_share
        return adapted

    def _folded(self, adapter: Adapter) -> Transcriber:
        """The bundle with an adapter in it, as it would be used."""
        self._weights = adapter.fold(self.bundle)
        return Transcriber(Engine(self.bundle, self._threads, overrides=self._weights))

    def _told(self, stage: str, share: float) -> None:
        """Pass progress on; stopping is possible here too."""
        self._on_progress(Progress(stage, share))
