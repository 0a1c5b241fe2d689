"""Chunks of a live stream -> one line per utterance.

    chunks (microphone, or a file at the speed of its sound) -> VAD cuts at pauses -> Session -> Utterance

The same path for both: a file stands in for the microphone in tests and demos. Time comes from a Clock, so
that tests play a minute of audio without waiting for it.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE, stream_audio
from whisperfold.runtime.windows import AudioWindow, WindowCutter

if TYPE_CHECKING:
    from whisperfold.runtime.transcribe import Session, Transcriber

CHUNK_S = 0.1
"""Length of a chunk; a microphone delivers ten a second."""


@dataclass(frozen=True)
class Clock:
    """Where time comes from."""

    now: Callable[[], float] = time.monotonic
    """Seconds since any fixed moment."""
    sleep: Callable[[float], None] = time.sleep
    """Wait for a number of seconds."""


@dataclass(frozen=True)
class Utterance:
    """What was said between two pauses."""

    start_s: float
    """Seconds from the start of the stream."""
    end_s: float
    text: str
    avg_logprob: float
    """Mean log probability of its tokens."""
    no_speech_prob: float
    language: str
    processing_s: float
    """Time that the encoder and the decoder took."""
    delay_s: float
    """From the end of the utterance to its text: the pause that ended it, and processing_s."""

    def record(self) -> dict[str, Any]:
        """Return it as plain numbers and strings for JSON."""
        numbers = ("start_s", "end_s", "avg_logprob", "no_speech_prob", "processing_s", "delay_s")
        rounded = {name: round(float(getattr(self, name)), 3) for name in numbers}
        return {"text": self.text, "language": self.language, **rounded}


def file_chunks(
    path: str | PathLike[str], real_time: bool = True, chunk_s: float = CHUNK_S, clock: Clock | None = None
) -> Iterator[np.ndarray]:
    """Play a file as a microphone would deliver it.

    Args:
        path: anything libsndfile reads.
        real_time: hand out a chunk only when its last sample would have been spoken.
        chunk_s: length of a chunk.
        clock: where time comes from; None is the real one.

    Yields:
        float32 (n,) chunks at 16 kHz.

    Raises:
        AudioError: the file is missing, empty, damaged or no audio.
    """
    clock = clock or Clock()
    started_s, n_samples = clock.now(), 0
    for chunk in stream_audio(path, block_s=chunk_s):
        n_samples += chunk.size
        if real_time:
            early_s = started_s + n_samples / SAMPLE_RATE - clock.now()
            if early_s > 0.0:
                clock.sleep(early_s)
        yield chunk


def listen(
    transcriber: "Transcriber",
    chunks: Iterable[np.ndarray],
    options: dict[str, Any] | None = None,
    clock: Clock | None = None,
) -> Iterator[Utterance]:
    """Turn a stream into utterances, each as soon as its speaker pauses.

    Args:
        transcriber: the weights.
        chunks: float32 (n,) at 16 kHz, in order, without gaps.
        options: fields of DecodingOptions.
        clock: measures processing_s; None is the real one.

    Yields:
        Utterances with text; noise and silence give none.

    Raises:
        ConfigError: unknown or impossible option (before the first chunk is read).
    """
    clock = clock or Clock()
    session = transcriber.session(**(options or {}))
    cutter = WindowCutter(transcriber.bundle.window)
    heard_s = 0.0
    for chunk in chunks:
        heard_s += chunk.size / SAMPLE_RATE
        for window in cutter.push(chunk):
            yield from _recognise(session, window, heard_s, clock)
    for window in cutter.finish():
        yield from _recognise(session, window, heard_s, clock)


def _recognise(session: "Session", window: AudioWindow, heard_s: float, clock: Clock) -> Iterator[Utterance]:
    """Decode one window; nothing if it holds no text."""
    started_s = clock.now()
    session.accept_chunk(window.samples)
    transcription = session.finish()
    processing_s = clock.now() - started_s
    segments = transcription.segments
    if not segments:
        return
    end_s = window.start_s + segments[-1].end_s
    yield Utterance(
        start_s=window.start_s + segments[0].start_s,
        end_s=end_s,
        text=transcription.text,
        avg_logprob=float(np.mean([segment.avg_logprob for segment in segments])),
        no_speech_prob=max(segment.no_speech_prob for segment in segments),
        language=transcription.language or "",
        processing_s=processing_s,
        delay_s=heard_s - end_s + processing_s,
    )
