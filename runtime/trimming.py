"""A recording of a sentence -> the sentence: the silence before and after it is cut off, but for a margin.

silence | 0.4 s, what is said, 0.4 s | silence
"""

from __future__ import annotations

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.vad import VoiceDetector

MARGIN_S = 0.4
"""Silence kept on both sides."""


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Return float32 (n,) samples at 16 kHz without the silence around what is said; all of them if nothing is."""
    detector = VoiceDetector()
    events = detector.push(samples)
    if not events:
        return samples
    first = round((events[0].time_s - MARGIN_S) * SAMPLE_RATE)
    last = samples.size if detector.in_speech else round((events[-1].time_s + MARGIN_S) * SAMPLE_RATE)
    return samples[max(0, first) : last]
