"""Audio of any length -> windows that the encoder can take; silence between them is dropped.

A clip up to max_s is one window as it is. Longer audio is cut where the speaker pauses:

    speech pause speech ...... silence ...... speech
    [---- window -------]                [---- window ...

The longer a window is, the shorter a pause ends it (2 s at first, 0.3 s near max_s); without any pause it is
cut at the quietest 0.2 s of its second half.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE, check_samples
from whisperfold.runtime.manifest import Window
from whisperfold.runtime.mel import HOP_LENGTH
from whisperfold.runtime.vad import VoiceDetector, has_speech

FULL_SAMPLES = 30 * SAMPLE_RATE
"""The window that Whisper was trained on."""
LONGEST_GAP_S = 2.0
"""A pause this long ends any window, seconds."""
SHORTEST_GAP_S = 0.3
"""A pause this long ends a window that is nearly full, seconds."""
PAD_BEFORE_S = 0.3
PAD_AFTER_S = 0.5
"""Audio kept around speech, seconds: the detector misses soft beginnings and decaying last syllables."""
_HISTORY_S = 1.0
"""Audio kept while nobody speaks: a start is reported at most 0.3 s late, and padded."""
_STEP_SAMPLES = SAMPLE_RATE // 4
"""The cutter looks for events this often."""


@dataclass(frozen=True)
class AudioWindow:
    """A stretch of audio for one encoder run."""

    start_s: float
    """Where it begins in the recording, seconds."""
    samples: np.ndarray
    """float32 (n,), at most max_s long."""

    @property
    def duration_s(self) -> float:
        """Length in seconds, without padding."""
        return self.samples.size / SAMPLE_RATE


def padded_samples(n_samples: int, window: Window) -> int:
    """Return how many samples a window of n_samples has with its tail (short) or at 30 s (full).

    Even numbers of frames, because the encoder halves them; never more than 30 s.
    """
    if window.kind == "full":
        return FULL_SAMPLES
    wanted = max(n_samples + round(window.tail_s * SAMPLE_RATE), round(window.min_s * SAMPLE_RATE))
    return min(FULL_SAMPLES, -(-wanted // (2 * HOP_LENGTH)) * 2 * HOP_LENGTH)


def pad(samples: np.ndarray, window: Window) -> np.ndarray:
    """Return samples with the window's tail of zeros, float32 (padded_samples(n),); cut at 30 s."""
    out = np.zeros(padded_samples(samples.size, window), np.float32)
    kept = samples[: out.size]
    out[: kept.size] = kept
    return out


def max_samples(window: Window) -> int:
    """Most samples of audio in one window; a short window also needs room for its tail in 30 s."""
    tail_s = window.tail_s if window.kind == "short" else 0.0
    return min(round(window.max_s * SAMPLE_RATE), FULL_SAMPLES - round(tail_s * SAMPLE_RATE))


def cut_windows(blocks: Iterable[np.ndarray], window: Window, vad: bool = True) -> Iterator[AudioWindow]:
    """Cut a recording into windows, in memory that does not depend on its length.

    Args:
        blocks: float32 (n,) blocks at 16 kHz, any sizes.
        window: the bundle's policy.
        vad: drop what is not speech.

    Yields:
        Windows in order; none if vad finds no speech.

    Raises:
        AudioError: a block with NaN or of a wrong type.
    """
    rest = (check_samples(block) for block in blocks if not (isinstance(block, np.ndarray) and block.size == 0))
    head: list[np.ndarray] = []
    n_head, limit = 0, max_samples(window)
    for block in rest:
        head.append(block)
        n_head += block.size
        if n_head > limit:
            break
    if not head:
        return
    if n_head <= limit:
        samples = head[0] if len(head) == 1 else np.concatenate(head)
        if not vad or has_speech(samples):
            yield AudioWindow(0.0, samples)
        return
    cutter = WindowCutter(window, vad)
    for block in itertools.chain(head, rest):
        yield from cutter.push(block)
    yield from cutter.finish()


class WindowCutter:
    """Streaming part of `cut_windows`: samples in, finished windows out."""

    def __init__(self, window: Window, vad: bool = True) -> None:
        self._limit = max_samples(window)
        self._detector = VoiceDetector() if vad else None
        self._buffer = np.empty(0, np.float32)
        self._buffer_start = 0  # sample number of _buffer[0]
        self._open: int | None = None if vad else 0  # sample number where the growing window starts
        self._speech_end: int | None = None  # sample number, while the speaker pauses
        self._used = 0  # sample number up to which windows have been given out

    def push(self, samples: np.ndarray) -> Iterator[AudioWindow]:
        """Take float32 (n,) samples; yield the windows that they complete."""
        for first in range(0, samples.size, _STEP_SAMPLES):
            step = samples[first : first + _STEP_SAMPLES]
            self._buffer = np.concatenate([self._buffer, step])
            if self._detector is not None:
                self._follow(self._detector, step)
            yield from self._completed()
            self._forget()

    def finish(self) -> Iterator[AudioWindow]:
        """Yield what is left."""
        if self._detector is not None:
            for event in self._detector.finish():
                self._speech_end = round(event.time_s * SAMPLE_RATE)
        if self._open is not None:
            end = self._now if self._speech_end is None else self._padded(self._speech_end)
            yield from self._emit(end)

    @property
    def _now(self) -> int:
        """Sample number of the end of the stream so far."""
        return self._buffer_start + self._buffer.size

    def _padded(self, end: int) -> int:
        """PAD_AFTER_S after the end of speech."""
        return min(self._now, end + round(PAD_AFTER_S * SAMPLE_RATE))

    @property
    def _gap(self) -> int:
        """Samples of pause that end the growing window."""
        assert self._open is not None
        share = min(1.0, (self._now - self._open) / self._limit)
        return round((LONGEST_GAP_S - share * (LONGEST_GAP_S - SHORTEST_GAP_S)) * SAMPLE_RATE)

    def _follow(self, detector: VoiceDetector, step: np.ndarray) -> None:
        """Note where speech starts and ends."""
        for event in detector.push(step):
            at = round(event.time_s * SAMPLE_RATE)
            if event.kind == "end":
                self._speech_end = at
                continue
            self._speech_end = None
            if self._open is None:
                self._open = max(self._used, self._buffer_start, at - round(PAD_BEFORE_S * SAMPLE_RATE))

    def _completed(self) -> Iterator[AudioWindow]:
        """Windows that a pause or the limit has ended."""
        if self._open is None:
            return
        if self._speech_end is not None and self._now - self._speech_end >= self._gap:
            yield from self._emit(self._padded(self._speech_end))
            self._open = None
            return
        while self._now - self._open > self._limit:
            span = self._buffer[self._open - self._buffer_start :][: self._limit]
            cut = self._open + quietest_sample(span, self._limit // 2)
            yield from self._emit(cut)
            is_over = self._speech_end is not None and cut >= self._speech_end
            self._open = None if is_over else cut
            if self._open is None:
                return

    def _emit(self, end: int) -> Iterator[AudioWindow]:
        """The window from _open to end; the detector's last chunk may make it longer than the limit."""
        assert self._open is not None
        samples = self._buffer[self._open - self._buffer_start : end - self._buffer_start][: self._limit]
        self._used = max(self._used, self._open + samples.size)
        if samples.size:
            yield AudioWindow(self._open / SAMPLE_RATE, samples.copy())

    def _forget(self) -> None:
        """Drop audio that no window needs any more."""
        keep_from = self._now - round(_HISTORY_S * SAMPLE_RATE) if self._open is None else self._open
        n_drop = keep_from - self._buffer_start
        if n_drop > 0:
            self._buffer = self._buffer[n_drop:].copy()
            self._buffer_start = keep_from


def quietest_sample(samples: np.ndarray, first: int) -> int:
    """Return the middle of the quietest 0.2 s at or after sample number first."""
    hop = HOP_LENGTH
    n_hops = max(1, (samples.size - first) // hop)
    frames = samples[first : first + n_hops * hop].reshape(n_hops, -1)
    power = np.einsum("ij,ij->i", frames, frames)
    width = min(20, n_hops)
    smooth = np.convolve(power, np.ones(width), mode="valid")
    return first + (int(np.argmin(smooth)) + width // 2) * hop
