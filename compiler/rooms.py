"""A clip -> the same words in a room and through a microphone, in time with the clip, for frames.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import ConfigError

N_BANDS = 7
"""Points of a microphone's response, evenly apart in log frequency from 60 Hz to 8 kHz."""


@dataclass(frozen=True)
class Rooms:
    """Ranges from which every presentation draws."""

    room_share: float = 0.4
    """Share of the presentations that reverberate."""
    decay_s: tuple[float, float] = (0.1, 0.6)
    """Seconds until a room's echoes are 60 dB down."""
    echo_db: tuple[float, float] = (-12.0, 3.0)
    """All of the echoes beside the direct sound."""
    channel_share: float = 0.7
    """Share of the presentations that some microphone colours."""
    channel_db: float = 6.0
    """How far its response strays, either way."""

    def __post_init__(self) -> None:
        """Check ranges."""
        shares = {"room_share": self.room_share, "channel_share": self.channel_share}
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"rooms.{name} = {share}: expected 0 to 1")
        if not 0.01 <= self.decay_s[0] <= self.decay_s[1] <= 5.0:
            raise ConfigError(f"rooms.decay_s = {list(self.decay_s)}: expected two rising values from 0.01 to 5")


def place(samples: np.ndarray, rooms: Rooms, rng: np.random.Generator) -> np.ndarray:
    """Return a changed copy of float32 (n,) samples at 16 kHz, n as before; as loud, unless that would clip."""
    if not samples.size:
        return samples
    heard = samples
    if rng.random() < rooms.room_share:
        heard = _convolve(heard, _room(rng, rng.uniform(*rooms.decay_s), rng.uniform(*rooms.echo_db)))
    if rng.random() < rooms.channel_share:
        heard = _colour(heard, rng.uniform(-rooms.channel_db, rooms.channel_db, N_BANDS))
    scale = np.sqrt(np.mean(samples**2) / (np.mean(heard**2) + 1e-12))
    scale = min(scale, 1.0 / (np.abs(heard).max() + 1e-9))
    return (heard * scale).astype(np.float32)


def _room(rng: np.random.Generator, decay_s: float, echo_db: float) -> np.ndarray:
    """Return an impulse response (n,): the direct sound at once, then noise that dies away."""
    t = np.arange(round(decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    echoes = rng.standard_normal(t.size) * 10.0 ** (-3.0 * t / decay_s)
    echoes *= 10.0 ** (echo_db / 20.0) / np.linalg.norm(echoes)
    echoes[0] = 1.0
    return echoes


def _convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return the first n samples of the convolution."""
    n_fft = samples.size + response.size
    return np.fft.irfft(np.fft.rfft(samples, n_fft) * np.fft.rfft(response, n_fft), n_fft)[: samples.size]


def _colour(samples: np.ndarray, gains_db: np.ndarray) -> np.ndarray:
    """Weight the frequencies by gains (N_BANDS,), lines between them."""
    bands = np.geomspace(60.0, SAMPLE_RATE / 2.0, gains_db.size)
    frequencies = np.fft.rfftfreq(samples.size, 1.0 / SAMPLE_RATE)
    gains = 10.0 ** (np.interp(frequencies, bands, gains_db) / 20.0)
    return np.fft.irfft(np.fft.rfft(samples) * gains, samples.size)
