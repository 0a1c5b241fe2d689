"""A recording -> the same words a little faster or slower, louder or softer, in some noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from whisperfold.runtime.audio import SAMPLE_RATE


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which every presentation draws."""

    speed: tuple[float, float] = (0.9, 1.1)
    """Factor; the pitch goes with it."""
    gain_db: tuple[float, float] = (-6.0, 3.0)
    noise_share: float = 0.5
    """Share of the presentations with noise."""
    noise_snr_db: tuple[float, float] = (15.0, 40.0)
    """Signal to noise, of white to brown noise."""


def augment(
    samples: np.ndarray, options: Augmentation, rng: np.random.Generator, max_samples: int | None = None
) -> np.ndarray:
    """Return a changed copy of float32 (n,) samples at 16 kHz, in [-1, 1].

    Args:
        samples: what was said.
        options: the ranges.
        rng: draws from them.
        max_samples: of the model's window: what fits into it is not slowed down beyond it, so that no word is cut off.
    """
    speed = rng.uniform(*options.speed)
    if max_samples is not None and samples.size <= max_samples:
        speed = max(speed, samples.size / max_samples)
    if abs(speed - 1.0) > 0.005:
        samples = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="MQ")[:max_samples]
    samples = samples * np.float32(10.0 ** (rng.uniform(*options.gain_db) / 20.0))
    if rng.random() < options.noise_share:
        level = float(np.sqrt(np.mean(samples**2))) * 10.0 ** (-rng.uniform(*options.noise_snr_db) / 20.0)
        samples = samples + np.float32(level) * coloured_noise(rng, samples.size, rng.uniform(0.0, 2.0))
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def coloured_noise(rng: np.random.Generator, n_samples: int, exponent: float) -> np.ndarray:
    """Return unit-variance noise, float32 (n_samples,), with power 1 / f^exponent: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    spectrum /= np.maximum(np.arange(spectrum.size), 1.0) ** (exponent / 2.0)
    noise = np.fft.irfft(spectrum, n_samples)
    return (noise / (noise.std() + 1e-9)).astype(np.float32)
