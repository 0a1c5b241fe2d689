"""Recordings that pass the checks -> what is learned, in folds; the clips of other speakers; hearing them all.

Every recording whose text was read or came with it is in one fold: it is heard by an adapter that was trained on the
other folds only. Those with the model's own text ("self") are learned from in all folds, and judge nothing: by their
text, the model as it is makes no errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.augment import Augmentation
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.error_rate import Score, score
from whisperfold.runtime.errors import AudioError, EnrollmentError
from whisperfold.runtime.recording_checks import Check, check_recording
from whisperfold.runtime.recordings import SELF, RecordingStore, read_source
from whisperfold.runtime.text_style import in_style_of
from whisperfold.runtime.training_graph import Lesson
from whisperfold.runtime.transcribe import Transcriber

CANARY = Path(__file__).parent / "canary"
MIN_RECORDINGS = 8
"""With a text that is not the model's own."""
MIN_TOTAL_S = 30.0
MAX_MISREAD_SHARE = 0.5
"""More recordings than this whose text does not match: the texts are somebody else's."""

Told = Callable[[str, float], None]
"""Called with a stage and the share of it that is done."""


@dataclass(frozen=True)
class Selection:
    """What will be learned, and what was left out."""

    lessons: tuple[Lesson, ...]
    before: tuple[Score, ...]
    """How the bundle as it is hears those that are compared: all but the ones with the model's own text."""
    digests: Mapping[str, str]
    """Of their samples, by file."""
    left_out: tuple[tuple[str, str], ...]
    """File and reason."""
    warnings: tuple[tuple[str, str], ...]
    """File and what could be better, of those that are learned."""

    @property
    def total_s(self) -> float:
        """Seconds of the lessons."""
        return sum(lesson.samples.size for lesson in self.lessons) / SAMPLE_RATE


def select(
    recordings: RecordingStore, transcriber: Transcriber, max_memory_mb: float, language: str | None, told: Told
) -> Selection:
    """Check every recording of a person and return those that can be learned from.

    Raises:
        EnrollmentError: too few are left, or the texts are somebody else's.
    """
    kept = recordings.all()
    n_own = sum(item.kind == SELF for item in kept)
    n_others = len(kept) - n_own
    if n_own and n_others < MIN_RECORDINGS:
        raise EnrollmentError(
            f"{n_others} recordings with a text that was read or came with them, {n_own} with the model's "
            f"own, which cannot tell whether it gets better; expected at least {MIN_RECORDINGS} of the first: add some"
        )
    max_s = longest_recording_s(transcriber.bundle, max_memory_mb)
    lessons, before, left_out, warnings, n_misread = [], [], [], [], 0
    for done, item in enumerate(kept):
        told("checking recordings", done / len(kept))
        try:
            samples = recordings.load(item)
        except (AudioError, EnrollmentError) as error:
            left_out.append((item.file, str(error)))
            continue
        check = check_recording(samples, item.text, transcriber, language)
        if not check.problem and item.duration_s > max_s:
            check = Check(f"{item.duration_s:.1f} s long, --max-memory leaves room for {max_s:.0f} s", "", 0.0, 1.0)
        if check.problem:
            n_misread += bool(check.heard) and item.kind != SELF
            left_out.append((item.file, check.problem))
            continue
        if check.warning:
            warnings.append((item.file, check.warning))
        if item.kind != SELF:
            before.append(score(item.file, item.text, check.heard))
        lessons.append(Lesson(item.file, samples, in_style_of(item.text, check.heard)))
    if n_others and n_misread / n_others > MAX_MISREAD_SHARE:
        raise EnrollmentError(
            f"{n_misread} of {n_others} texts are not what is said in the recordings: are they somebody else's?"
        )
    digests = {item.file: item.digest for item in kept}
    selection = Selection(tuple(lessons), tuple(before), digests, tuple(left_out), tuple(warnings))
    if len(before) < MIN_RECORDINGS or selection.total_s < MIN_TOTAL_S:
        why = f" ({left_out[0][0]}: {left_out[0][1]})" if left_out else ""
        raise EnrollmentError(
            f"{len(before)} of {n_others} recordings can be used, {selection.total_s:.0f} s{why}; expected at "
            f"least {MIN_RECORDINGS} and {MIN_TOTAL_S:.0f} s: record more"
        )
    return selection


def longest_recording_s(bundle: Bundle, max_memory_mb: float) -> float:
    """Return how long a recording may be so that learning it stays below a peak memory in MB (10^6 bytes).

    It may be heard slower than it is, which counts too. An upper bound of what `python tests/bench/adapt_memory.py`
    measures: tiny.en 484, 598 MB for 5, 15 s; with all weights in 8 bits tiny.en 446, 662, 1,088 MB for 5, 15, 30 s,
    base 749, 1,168, 2,057 MB.
    """
    fixed_mb = 255.0 + 3.9e-6 * bundle.size_bytes
    mb_per_s = 0.0175 * bundle.dims.n_audio_state * bundle.dims.n_audio_layer
    slowest = Augmentation().speed[0]
    return max(0.0, slowest * (max_memory_mb - fixed_mb) / mb_per_s)


def fold_numbers(n: int, total_s: float, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each of n recordings, int64 (n,).

    Args:
        n: recordings.
        total_s: their length together: many seconds need fewer folds, for time.
        n_folds: 0 chooses 4 below 90 s, 3 below 180 s, else 2.
        seed: of the shuffle.
    """
    n_folds = n_folds or (4 if total_s < 90.0 else 3 if total_s < 180.0 else 2)
    return np.random.default_rng(seed).permutation(n) % n_folds


def canary_lessons(limit: int = 0) -> list[Lesson]:
    """Return the packaged clips of other speakers with their texts, the first ones if there is a limit."""
    clips = [Lesson(item.name, item.samples, item.text or "") for item in read_source(CANARY / "canary.jsonl")]
    return clips[:limit] if limit else clips


def hear(
    transcriber: Transcriber, lessons: Sequence[Lesson], language: str | None, told: Told, stage: str
) -> list[Score]:
    """Transcribe every lesson, greedily as live text is, and count the word errors."""
    scores = []
    for done, lesson in enumerate(lessons):
        told(stage, done / len(lessons))
        text = transcriber.transcribe(lesson.samples, language=language, beam_size=1).text
        scores.append(score(lesson.name, lesson.text, text))
    return scores
