"""Silence around a sentence is cut off, up to a margin."""

from __future__ import annotations

import numpy as np

from whisperfold.runtime.trimming import trimmed


def test_silence_around_speech_is_cut_off(jfk: np.ndarray) -> None:
    spoken = np.pad(jfk[:32_000], (50_000, 60_000))
    assert 24_000 < trimmed(spoken).size < 50_000


def test_without_speech_all_stays() -> None:
    assert trimmed(np.zeros(16_000, np.float32)).size == 16_000
    assert trimmed(np.zeros(0, np.float32)).size == 0


def test_speech_that_goes_on_is_kept_to_the_end(jfk: np.ndarray) -> None:
    speaking = np.pad(jfk[:32_000], (50_000, 0))
    kept = trimmed(speaking)
    assert kept.size < 50_000 and np.array_equal(kept, speaking[-kept.size :])
