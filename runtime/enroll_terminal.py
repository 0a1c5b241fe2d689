"""Prompts on the terminal -> recordings: show, record until silence or Enter, check, play back, redo.

    sentence -> chunks of the microphone -> one recording -> what is wrong with it -> keep / p / r / s / q

Where sound and answers come from is given by the caller, so that tests play a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.recording_checks import check_recording
from whisperfold.runtime.recordings import RecordingStore
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.trimming import MARGIN_S, trimmed
from whisperfold.runtime.vad import VoiceDetector

END_SILENCE_S = 1.6
"""A pause this long after speech ends a recording."""
WAIT_S = 15.0
"""Nobody speaks for so long: the recording ends."""
_REST = "s skips, q goes on later"


@dataclass(frozen=True)
class Studio:
    """Where sound and answers come from, and where words go."""

    chunks: Callable[[], Iterator[np.ndarray]]
    """Opens the microphone: float32 (n,) chunks at 16 kHz."""
    ask: Callable[[str], str]
    """Shows a line and returns what the person types."""
    say: Callable[[str], None]
    play: Callable[[np.ndarray], None]
    pressed: Callable[[], bool] = lambda: False
    """Whether Enter was pressed while recording."""


def read_aloud(
    sentences: Sequence[str],
    recordings: RecordingStore,
    transcriber: Transcriber,
    studio: Studio,
    language: str | None = None,
) -> bool:
    """Record the sentences that are not recorded yet; each is kept at once, so that Ctrl-C loses one at most.

    Args:
        sentences: to read.
        recordings: where they go.
        transcriber: hears whether the reading is right.
        studio: sound and answers.
        language: of the sentences, for multilingual bundles.

    Returns:
        False if the person wants to go on later.
    """
    done = {item.text for item in recordings.all()}
    waiting = [sentence for sentence in sentences if sentence not in done]
    for number, sentence in enumerate(waiting, 1):
        answer = _one(f"{number}/{len(waiting)}", sentence, recordings, transcriber, studio, language)
        if answer == "q":
            return False
    return True


def record(studio: Studio, max_s: float) -> np.ndarray:
    """Return float32 (n,) from the start of speech to the pause after it, Enter, or the longest length."""
    detector, heard, n = VoiceDetector(), [], 0
    start_s = end_s = -1.0
    for chunk in studio.chunks():
        heard.append(chunk)
        n += chunk.size
        now_s = n / SAMPLE_RATE
        for event in detector.push(chunk):
            if event.kind == "end":
                end_s = event.time_s
            elif start_s < 0.0:
                start_s = event.time_s
        is_quiet = start_s >= 0.0 and not detector.in_speech and now_s - end_s >= END_SILENCE_S
        waited = start_s < 0.0 and now_s >= WAIT_S
        if is_quiet or waited or studio.pressed() or (start_s >= 0.0 and now_s - start_s >= max_s - 2 * MARGIN_S):
            break
    return trimmed(np.concatenate(heard) if heard else np.zeros(0, np.float32))


def _one(
    number: str,
    sentence: str,
    recordings: RecordingStore,
    transcriber: Transcriber,
    studio: Studio,
    language: str | None,
) -> str:
    """Record one sentence until the person is content; return the last answer."""
    studio.say(f"\n[{number}] {sentence}")
    while True:
        answer = studio.ask(f"Enter records, {_REST}: ").strip().lower()
        if answer in ("s", "q"):
            return answer
        samples = record(studio, transcriber.bundle.window.max_s)
        check = check_recording(samples, sentence, transcriber, language)
        if check.problem:
            studio.say(f"  {check.problem}")
            continue
        studio.say(f"  {check.warning or 'good'}")
        answer = "p"
        while answer == "p":
            answer = studio.ask(f"Enter keeps it, p plays it, r records it again, {_REST}: ").strip().lower()
            if answer == "p":
                studio.play(samples)
        if answer not in ("r", "s"):
            recordings.add(samples, sentence)
        if answer != "r":
            return answer
