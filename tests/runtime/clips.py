"""Sound that the tests send: the packaged clip, and samples as a file in memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile as sf

JFK = Path(__file__).resolve().parents[2] / "runtime" / "samples" / "jfk.flac"
"""Eleven seconds, "ask not what your country can do for you"."""


def wav(samples: np.ndarray, rate_hz: int = 16_000, kind: str = "WAV") -> bytes:
    """Return float32 samples as the bytes of a WAV, or another kind of, file."""
    out = io.BytesIO()
    sf.write(out, samples, rate_hz, format=kind)
    return out.getvalue()
